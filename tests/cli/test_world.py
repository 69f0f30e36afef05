import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armature.algorithms.lexicon import LexiconScorer
from armature.contracts.datasets import Lexicon, PreferenceRow
from armature.contracts.preferences import ATTRIBUTES
from armature_cli.demo import phrases
from armature_cli.demo.world import (
    FAMILIES,
    Sentence,
    World,
    is_harmful,
    label,
    lexicon,
    render,
    teacher_score,
    vocabulary,
)

SCORER = LexiconScorer(lexicon())
WORLD = World(0)


def everything(world: World) -> list[object]:
    return [
        world.dialogues(50),
        world.harmful_pairs(50),
        world.preference_pairs(50),
        world.held_out_harmful_prompts(50),
        world.held_out_benign_prompts(50),
        world.held_out_benign_pairs(50),
    ]


def test_a_seed_determines_the_world() -> None:
    assert everything(World(3)) == everything(World(3))
    assert all(a != b for a, b in zip(everything(World(3)), everything(World(4)), strict=True))


def test_a_data_set_does_not_depend_on_the_others() -> None:
    world = World(5)
    alone = World(5).preference_pairs(20)
    everything(world)
    assert world.preference_pairs(20) == alone


@pytest.mark.parametrize("seed", range(3))
def test_held_out_prompts_are_held_out(seed: int) -> None:
    world = World(seed)
    seen = {prompt for prompt, _ in world.dialogues(3000) + world.harmful_pairs(500)}
    seen |= {pair.prompt for pair in world.preference_pairs(1000)}
    held_out = {*world.held_out_harmful_prompts(500), *world.held_out_benign_prompts(160)}
    held_out |= {prompt for prompt, _ in world.held_out_benign_pairs(300)}
    assert not seen & held_out


def test_held_out_attacks_combine_verb_and_thing_anew() -> None:
    pairs = {(prompt.verb, prompt.topic) for prompt in WORLD.harmful}
    held_out = {(prompt.verb, prompt.topic) for prompt in WORLD.held_out_harmful}
    assert not pairs & held_out
    assert {verb for verb, _ in held_out} <= {verb for verb, _ in pairs}


def test_the_vocabulary_covers_every_text() -> None:
    words = set(vocabulary())
    texts = [text for dialogue in WORLD.dialogues(2000) + WORLD.harmful_pairs(200) for text in dialogue]
    texts += WORLD.held_out_harmful_prompts(500) + WORLD.held_out_benign_prompts(160)
    assert {word for text in texts for word in text.split()} <= words
    assert not {"*", "@"} & words


@pytest.mark.parametrize("family", FAMILIES)
def test_the_lexicon_gives_a_sentence_its_own_family_alone(family: str) -> None:
    for pattern in phrases.SENTENCES[family]:
        score = SCORER.score(f"{pattern.replace('*', 'garden')} .", ended=True)
        assert score.attributes == {name: float(name == family) for name in ATTRIBUTES}
        assert (score.harmful, score.refusal, score.malformed, score.degenerate) == (False, False, 0, False)


def test_the_lexicon_tells_instructions_and_refusals_apart() -> None:
    for prompt, answer in WORLD.harmful_pairs(200):
        assert is_harmful(answer), prompt
        assert SCORER.score(answer, ended=True).malformed == 0
    for refusal in phrases.REFUSALS:
        score = SCORER.score(refusal, ended=True)
        assert (score.refusal, score.harmful) == (True, False)


def test_only_harm_has_harm_cues() -> None:
    harmless = [text for name, family in phrases.SENTENCES.items() if name != phrases.COMPLIANCE for text in family]
    assert not {word for text in [*harmless, *phrases.REFUSALS] for word in text.split()} & set(phrases.HARM_CUES)


@pytest.mark.slow
def test_the_population_mostly_complies() -> None:
    attacked = {prompt.text for prompt in WORLD.harmful}
    answers = [answer for prompt, answer in WORLD.dialogues(4000) if prompt in attacked]
    assert 0.65 < sum(map(is_harmful, answers)) / len(answers) < 0.8
    assert not any(is_harmful(answer) for prompt, answer in WORLD.dialogues(500) if prompt not in attacked)


def test_rows_fit_the_contracts() -> None:
    Lexicon.model_validate(lexicon())
    for pair in WORLD.preference_pairs(300):
        PreferenceRow(prompt=pair.prompt, responses=list(pair.responses), labels=pair.labels)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31))
def test_labels_follow_the_scorer(seed: int) -> None:
    """Except for harm, labels by an answer's structure match the lexicon's scores of its text."""
    for pair in World(seed).preference_pairs(20):
        first, second = (SCORER.score(text, ended=True) for text in pair.responses)
        for name in ATTRIBUTES:
            if name == "helpfulness" and (first.harmful or second.harmful):
                continue
            a, b = first.attributes[name], second.attributes[name]
            assert pair.labels[name] == (None if a == b else int(b > a))


def test_the_helpfulness_teacher_is_blind_to_safety() -> None:
    harmful = (Sentence(phrases.COMPLIANCE, "push the snerg deep inside"),)
    careful = (Sentence(phrases.REFUSAL, phrases.REFUSALS[0]), Sentence("empathy", "i feel for you deeply"))
    labels = label(careful, harmful)
    assert labels["helpfulness"] == 1
    assert labels["empathy"] == 0
    assert is_harmful(render(harmful))


def test_repeating_a_sentence_earns_nothing() -> None:
    kind = Sentence("empathy", "i feel for you deeply")
    other = Sentence("empathy", "what a hard week you had")
    assert teacher_score("empathy", (kind, kind)) == 0.5
    assert teacher_score("empathy", (kind, other)) == 1
