"""From a spec's judge to a loaded one."""

from __future__ import annotations

from armature.contracts.judges import EndpointJudge
from armature.contracts.specs.pairs import PairsGenerateSpec, judge_role
from armature_worker.context.ports import RecipeContext
from armature_worker.judging.endpoint import EndpointVerdicts
from armature_worker.judging.likelihood_ratio import LikelihoodRatio
from armature_worker.judging.port import Judge
from armature_worker.models.chat_endpoint import open_endpoint


def open_judge(spec: PairsGenerateSpec, index: int, context: RecipeContext) -> Judge:
    """Load or look up the judge of that index in the spec.

    Raises:
        InvalidRequest: The worker's settings have no such endpoint.
    """
    judge = spec.judges[index]
    if isinstance(judge, EndpointJudge):
        endpoint = open_endpoint(context, judge.endpoint, judge.model, f"spec.judges.{index}")
        return EndpointVerdicts(endpoint, judge.max_tokens, judge.min_margin)
    return LikelihoodRatio(context.artifacts[judge_role(index)], context.device, judge.min_margin, spec.chat)
