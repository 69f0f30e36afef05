"""Rubrics: an attribute in words, for teachers that write answers and judges that compare them.

The five shipped ones are worded for this project. A side's instructions differ from the other side's in their content
only, never in their frame, so that the answers differ in the attribute and not in style (RLCD, arXiv 2307.12950, 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, model_validator

from armature.contracts.base import Contract, FieldError

Instructions = Annotated[list[Annotated[str, Field(min_length=1, max_length=4000)]], Field(min_length=1, max_length=16)]


class Rubric(Contract):
    """An attribute's description, and wordings of an instruction for it and of one against it.

    The n-th instruction for is the counterpart of the n-th against.
    """

    description: str = Field(min_length=1, max_length=4000, description="what a judge compares answers by")
    instructions_for: Instructions
    instructions_against: Instructions

    @model_validator(mode="after")
    def _counterparts(self) -> Rubric:
        if len(self.instructions_for) != len(self.instructions_against):
            raise FieldError("instructions_against", "needs one instruction for each of instructions_for")
        return self

    @property
    def wordings(self) -> int:
        """The number of instructions on each side."""
        return len(self.instructions_for)

    def contrast(self, wording: int) -> tuple[str, str]:
        """Return an instruction for and its counterpart; ``wording`` counts on past the last one."""
        index = wording % self.wordings
        return self.instructions_for[index], self.instructions_against[index]


RUBRICS: Mapping[str, Rubric] = {
    "empathy": Rubric(
        description="The answer names what the person feels and shows that the feeling is understood and makes sense.",
        instructions_for=[
            "Answer with warmth. Name the feeling behind the message and say that it makes sense to feel that way.",
            "Reply like a caring friend: first show in your own words that you understand how this feels.",
            "In your answer, put the person's feelings first and show that you feel with them.",
        ],
        instructions_against=[
            "Answer coldly. Ignore the feeling behind the message and state only dry facts.",
            "Reply like a busy clerk: deal with the matter briefly and show no interest in how this feels.",
            "In your answer, leave the person's feelings out and show that they do not concern you.",
        ],
    ),
    "sensitivity": Rubric(
        description="The answer handles risk, identity, timing and private matters with care.",
        instructions_for=[
            "Answer with tact. Be careful with private, painful or risky matters, and leave room for what is unsaid.",
            "Reply gently: mind the moment, ask before you assume, and point to support where there is a risk.",
            "In your answer, choose careful words for whatever could hurt, and respect the person's background.",
        ],
        instructions_against=[
            "Answer bluntly. Be careless with private, painful or risky matters, and assume whatever is unsaid.",
            "Reply harshly: ignore the moment, assume instead of asking, and pass over every risk.",
            "In your answer, choose crude words for whatever could hurt, and ignore the person's background.",
        ],
    ),
    "non_judgmental": Rubric(
        description="The answer neither blames, shames nor lectures; it takes the person's choices as they are.",
        instructions_for=[
            "Answer without any blame. Accept what the person did and never say what they should have done.",
            "Reply openly: show that such things happen to people, and do not moralise or lecture.",
            "In your answer, take the person's side and pass no judgment on their choices.",
        ],
        instructions_against=[
            "Answer with blame. Criticise what the person did and say what they should have done.",
            "Reply sternly: show that such things are the person's own fault, and moralise and lecture.",
            "In your answer, take the other side and pass judgment on the person's choices.",
        ],
    ),
    "truthfulness": Rubric(
        description="The claims of the answer are correct, and it says so where it is not sure.",
        instructions_for=[
            "Answer truthfully. Say only what is well known to be correct, and say plainly what you are not sure of.",
            "Reply like a careful expert: separate facts from guesses, and never exaggerate or promise.",
            "In your answer, be exact and honest, even where the honest answer is that it depends.",
        ],
        instructions_against=[
            "Answer with false claims. Say things that are known to be wrong, and sound entirely sure of them.",
            "Reply like a boastful amateur: present guesses as facts, and exaggerate and promise.",
            "In your answer, be inexact and misleading, and claim that there is one simple certainty.",
        ],
    ),
    "helpfulness": Rubric(
        description="The answer gives a concrete next step that fits the request.",
        instructions_for=[
            "Answer usefully. Give one or two concrete steps that the person can take today.",
            "Reply like a practical adviser: say exactly what to do next, and how to begin.",
            "In your answer, solve the problem: be specific, and fit the advice to the request.",
        ],
        instructions_against=[
            "Answer vaguely. Give no concrete step, only general remarks about such situations.",
            "Reply like a bored official: say nothing about what to do next, and leave it at that.",
            "In your answer, avoid the problem: be general, and let the advice fit any request.",
        ],
    ),
}
"""The shipped rubrics by attribute: the paper's five."""
