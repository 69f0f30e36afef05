"""``pairs.generate``: preference pairs by contrast, for attributes that no labelled data exists for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from armature.contracts.base import Contract, FieldError, Name, Seed
from armature.contracts.chat import AS_SENT, ChatFormat
from armature.contracts.judges import EndpointJudge, EndpointName, Judge, LikelihoodRatioJudge, RemoteModel
from armature.contracts.preferences import ATTRIBUTES, AttributeName, AttributeNames
from armature.contracts.rubrics import RUBRICS, Rubric
from armature.contracts.specs.base import BaseSpec, Reference, base_model_reference, dataset_reference

SIDES = 2
"""Answers of a pair: one under an instruction for the attribute, one under an instruction against it."""


class BaseModelTeacher(Contract):
    """A base model of the platform writes answers."""

    type: Literal["base_model"] = "base_model"
    base_model: str = Field(description="id, alias or name")


class EndpointTeacher(Contract):
    """A model behind an OpenAI-compatible endpoint writes answers."""

    type: Literal["endpoint"] = "endpoint"
    endpoint: EndpointName
    model: RemoteModel


Teacher = Annotated[BaseModelTeacher | EndpointTeacher, Field(discriminator="type")]


InstructionPlace = Literal["user", "system"]
"""Where a teacher reads its instruction: after the last message of the user, or in the system message."""


class PairSampling(Contract):
    """The sampling of answers."""

    instruction: InstructionPlace = Field("user", description="small models follow what stands last")

    temperature: float = Field(0.7, ge=0, le=10)
    top_p: float = Field(0.95, gt=0, le=1)
    max_tokens: int = Field(96, ge=1, le=8192, description="an answer cut here ends at its last whole sentence")
    batch_size: int = Field(64, ge=1, le=4096, description="answers written in one batch")


class PairScreen(Contract):
    """The conditions on the texts of a pair, before any judge sees it."""

    min_characters: int = Field(20, ge=1, le=100_000)
    max_length_ratio: float = Field(
        1.5, ge=1, le=100, description="longer by shorter side in characters; the longer is cut at a sentence to fit"
    )
    max_similarity: float = Field(
        0.7, ge=0, le=1, description="shared word triples by all: above it two answers count as the same"
    )
    max_repetition: float = Field(
        0.2, ge=0, le=1, description="share of an answer's word triples that came before in it"
    )


class PairsGenerateSpec(BaseSpec):
    """Outputs: ``pairs``, and the data sets ``name`` and ``name``-held-out made from it."""

    resumable: ClassVar[bool] = True
    one_model_at_a_time: ClassVar[bool] = True
    makes_datasets: ClassVar[bool] = True
    phases: ClassVar[Mapping[str, float]] = {"load": 2.0, "generate": 65.0, "judge": 20.0, "label": 10.0}

    kind: Literal["pairs.generate"] = "pairs.generate"
    name: Name = Field("pairs", description="of the data set that is made", max_length=55)
    prompts: str = Field(description="data set usable as prompt")
    attributes: AttributeNames = Field(default=list(ATTRIBUTES))
    rubrics: dict[AttributeName, Rubric] = Field(default_factory=dict, description="beside or instead of the shipped")
    teachers: list[Teacher] = Field(min_length=1, max_length=16, description="take turns; both sides have the same one")
    judges: list[Judge] = Field(
        default_factory=list, max_length=8, description="a pair is kept if every one prefers the side written for"
    )
    pairs_per_prompt: int = Field(1, ge=1, le=64, description="pairs for each prompt and attribute")
    max_prompts: int | None = Field(None, ge=1, description="prompts used, the first ones; null: all")
    cross_label: bool = Field(False, description="the judges label kept pairs for the other attributes too")
    hard_pairs_per_prompt: int = Field(
        0, ge=0, le=64, description="pairs of an answer for one attribute and an answer for another, labelled for both"
    )
    human_labels: str | None = Field(None, description="data set usable as preference: agreement with the judges")
    held_out_share: float = Field(0.1, ge=0, lt=1, description="share of the prompts in the second data set; 0: none")
    chat: ChatFormat = Field(AS_SENT, description="how dialogues are written, for teachers and judges alike")
    sampling: PairSampling = PairSampling()
    screen: PairScreen = PairScreen()
    checkpoint_every: int = Field(8, ge=1, description="batches")
    seed: Seed = 0

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> PairsGenerateSpec:
        for index, name in enumerate(self.attributes):
            if name not in self.rubrics and name not in RUBRICS:
                raise FieldError(f"attributes.{index}", f"has no rubric; shipped are {', '.join(RUBRICS)}")
        for field in ("cross_label", "hard_pairs_per_prompt"):
            if getattr(self, field) and not self.judges:
                raise FieldError(field, "needs at least one of judges")
        return self

    def rubric(self, attribute: str) -> Rubric:
        """Return an attribute's rubric: the spec's own, else the shipped one."""
        return self.rubrics.get(attribute) or RUBRICS[attribute]

    def references(self) -> dict[str, Reference]:
        """Return the prompts, the base models of teachers and judges, and the human labels."""
        refs = {"prompts": dataset_reference(self.prompts, "prompts", "prompt")}
        if self.human_labels is not None:
            refs["human_labels"] = dataset_reference(self.human_labels, "human_labels", "preference")
        for index, teacher in enumerate(self.teachers):
            if isinstance(teacher, BaseModelTeacher):
                reference = base_model_reference(teacher.base_model, f"teachers.{index}.base_model")
                refs[teacher_role(index)] = reference
        for index, judge in enumerate(self.judges):
            if isinstance(judge, LikelihoodRatioJudge):
                refs[judge_role(index)] = base_model_reference(judge.base_model, f"judges.{index}.base_model")
        return refs

    def price(self, rows: Mapping[str, int]) -> dict[str, int]:
        """Bound what the job costs, given the number of rows of each data set.

        Pairs that the screen drops are not judged, so a job costs less.
        """
        prompts = min(rows["prompts"], self.max_prompts or rows["prompts"])
        count, drawn = len(self.attributes), self.pairs_per_prompt
        pairs = prompts * count * drawn
        crossed = pairs * (count - 1) if self.cross_label else 0
        hard = SIDES * min(self.hard_pairs_per_prompt, drawn * drawn * count * (count - 1) // 2) * prompts
        comparisons = pairs + crossed + hard + rows.get("human_labels", 0) * count
        local = sum(isinstance(judge, LikelihoodRatioJudge) for judge in self.judges)
        asked = sum(isinstance(judge, EndpointJudge) for judge in self.judges)
        remote = sum(isinstance(teacher, EndpointTeacher) for teacher in self.teachers)
        answers = SIDES * pairs
        return {
            "answers": answers,
            "generated_tokens": answers * self.sampling.max_tokens,
            "comparisons": comparisons * len(self.judges),
            "scored_tokens": comparisons * local * SIDES * SIDES * self.sampling.max_tokens,
            "endpoint_requests": -(-answers * remote // len(self.teachers)) + comparisons * asked * SIDES,
        }


def teacher_role(index: int) -> str:
    """Return the role of a teacher's base model among the job's inputs."""
    return f"teacher_{index}"


def judge_role(index: int) -> str:
    """Return the role of a judge's base model among the job's inputs."""
    return f"judge_{index}"
