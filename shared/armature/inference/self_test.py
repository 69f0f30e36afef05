"""Self-test of an adapter on the back end that will serve it."""

from __future__ import annotations

import sys

from peft import PeftModel

from armature.contracts.artifacts import Canary
from armature.contracts.preferences import preference_vector
from armature.inference.model import GuidedModel, start_runner
from armature.inference.shared_weights import SharedWeights
from armature.inference.stream import Stream
from armature.modeling.adapters.probe import check_probe_tokens, compare_probe


def self_test(base: SharedWeights, adapted: PeftModel, probe: Canary) -> None:
    """Repeat an adapter's probe through the runner of its base, in float32.

    Args:
        base: The dense weights.
        adapted: A copy of the base's modules with the adapter, before it runs.
        probe: What training recorded.

    Raises:
        AdapterBaseMismatch: The base computes other log-probabilities than at training.
        InvalidAdapter: The adapter does, or its probe is incomplete.
    """
    check_probe_tokens(probe, adapted.config.vocab_size)
    attributes, dtype, everything = adapted.active_peft_config.attributes, adapted.dtype, sys.maxsize
    with base.run_in_float32(adapted) as model:
        runner = start_runner(GuidedModel(model, frozenset(), everything, tuple(attributes)))
        off = Stream(probe.token_ids)
        prefill = runner.prefill([off, off.guided(preference_vector(probe.preference, attributes))])
        runner.extend(prefill, everything)
    assert prefill.logits is not None
    safe, arm = prefill.logits.float().log_softmax(-1)
    compare_probe(probe, arm, safe, dtype)
