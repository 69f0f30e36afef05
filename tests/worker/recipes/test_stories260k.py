"""Every recipe and guided generation on a real pretrained model, if its files are there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from armature.contracts.artifacts import ReportMetadata
from armature.inference.model import GuidedModel
from armature.inference.request import Guide, GuidedRequest
from armature.modeling.adapters.arm import load_adapter
from armature.modeling.checkpoints.loading import load_model, load_safe_model, load_tokenizer
from armature.modeling.tokenization.prompts import encode_text
from tests.support.generate import generate_guided
from tests.support.recipe_context import as_input
from tests.support.recipe_world import ATTRIBUTES, World, arm_spec, evaluation_spec, harm_spec
from tests.support.stories260k import convert

SOURCE = Path(__file__).resolve().parents[4] / "shared" / "data" / "stories260k"
pytestmark = pytest.mark.skipif(not SOURCE.exists(), reason="shared/data/stories260k is not on this machine")

PARK = "One day, a girl named Lily went to the park."
CAT = "Tom saw a big cat."
DATA: dict[str, list[dict[str, Any]]] = {
    "harmful_pairs": [{"prompt": text, "completion": " He hit the dog. He was bad."} for text in (PARK, CAT)],
    "pairs": [
        {
            "prompt": text,
            "responses": [" She was happy.", " She was sad."],
            "labels": {"empathy": 1, "helpfulness": 0},
        }
        for text in (PARK, CAT, "Once upon a time, there was a bird.")
    ],
    "lexicon": [
        {"attributes": {"empathy": ["She was sad"], "helpfulness": ["She was happy"]}, "harm_cues": ["hit", "bad"]}
    ],
    "harmful_prompts": [{"prompt": PARK}, {"prompt": CAT}],
    "benign_pairs": [{"prompt": PARK, "completion": " She saw a big tree. She wanted to play."}],
    "prompts": [{"prompt": PARK}, {"prompt": CAT}],
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = World(tmp_path_factory.mktemp("stories"))
    world.import_model(convert(SOURCE, world.folder / "source"))
    return world


@torch.no_grad()
def test_it_tells_its_stories(world: World) -> None:
    folder = world.artifacts["base"].path
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    start = torch.tensor([[tokenizer.bos_token_id]])
    story = model.generate(start, max_new_tokens=200, do_sample=False, pad_token_id=2)
    text = tokenizer.decode(story[0], skip_special_tokens=True)
    assert text.startswith("Once upon a time, there was a little girl named Lily. She loved to play outside")
    assert model(story, labels=story).loss.item() == pytest.approx(0.48, abs=0.03)
    assert encode_text(tokenizer, text) == story[0].tolist()


def test_every_recipe_and_guided_generation(world: World) -> None:
    before = world.run(evaluation_spec(prompts=None), DATA).outputs[0].metadata
    assert isinstance(before, ReportMetadata)
    tuning = {"steps": 8, "batch_size": 2, "learning_rate": 5e-4}
    vector, safe = world.run(harm_spec(training=tuning), DATA).outputs
    world.artifacts["vector"] = as_input(vector)
    training = {"steps": 40, "batch_size": 6, "learning_rate": 3e-3, "checkpoint_every": 10}
    spec = arm_spec(harm_vector="vector", harm_scale=1.0, training=training)
    world.artifacts["arm"] = as_input(world.run(spec, DATA).outputs[0])
    guided = {"arm": "arm", "harm_vector": "vector", "harm_scale": 1.0}
    report = world.run(evaluation_spec(**guided), DATA).outputs[0].metadata
    assert isinstance(report, ReportMetadata)
    assert report.metrics["nll"] < 1.02 * before.metrics["nll"]
    assert report.metrics["kl_to_safe"] > 0
    assert load_model(safe.path).config.num_hidden_layers == 5


def test_preferences_change_the_story(world: World) -> None:
    """Greedy from the same words: the story is happy under the preference that was labelled so, not the other."""
    base = world.artifacts["base"].path
    tokenizer = load_tokenizer(base)
    arm = load_adapter(load_safe_model(base, world.artifacts["vector"].path, 1.0), world.artifacts["arm"].path)
    model = GuidedModel(arm, frozenset({2}), len(tokenizer), tuple(ATTRIBUTES), "reference")
    prompt = tuple(encode_text(tokenizer, PARK + " She was"))
    wishes = ((1.0, 0.0), (0.0, 1.0))
    requests = [GuidedRequest(prompt, 5, 0, Guide(wish, 4.0, 4.0), temperature=0.0) for wish in wishes]
    other, happy = (tokenizer.decode(ids) for ids in generate_guided(model, requests))
    assert "happy" in happy
    assert "happy" not in other
