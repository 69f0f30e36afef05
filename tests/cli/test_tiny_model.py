from pathlib import Path

import pytest
import torch

from armature.modeling.checkpoints.folder import describe_checkpoint, open_checkpoint
from armature.modeling.checkpoints.loading import load_model, load_tokenizer
from armature.modeling.tokenization.answers import encode_answers
from armature_cli.demo import tiny_model
from armature_cli.demo.world import World, vocabulary

WORLD = World(0)


@pytest.fixture(autouse=True)
def keep_thread_count():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_text_survives_the_tokenizer() -> None:
    tokenizer = tiny_model.build_tokenizer(vocabulary())
    for _, answer in WORLD.dialogues(50):
        assert tokenizer.decode(tokenizer(answer)["input_ids"]) == answer


def test_training_and_serving_see_the_same_tokens() -> None:
    tokenizer = tiny_model.build_tokenizer(vocabulary())
    for prompt, answer in WORLD.dialogues(20):
        ids, labels = tiny_model.encode(tokenizer, [(prompt, answer)])
        asked, (answered,) = encode_answers(tokenizer, prompt, [answer])
        assert ids[0].tolist() == asked + answered
        assert labels[0].tolist() == [tiny_model.IGNORED] * len(asked) + answered


def test_padding_changes_no_loss() -> None:
    tokenizer = tiny_model.build_tokenizer(vocabulary())
    model = tiny_model.build_model(tokenizer, 0)
    short, long = sorted(WORLD.dialogues(20), key=lambda dialogue: len(dialogue[1]))[::19]
    alone = tiny_model.answer_loss(model, *tiny_model.encode(tokenizer, [short]))
    ids, labels = tiny_model.encode(tokenizer, [short, long])
    padded = tiny_model.answer_loss(model, ids[:1], labels[:1])
    assert ids.shape[1] > len(short[0].split()) + len(short[1].split()) + 3
    torch.testing.assert_close(padded, alone)


def test_a_trained_model_is_a_valid_checkpoint(tmp_path: Path) -> None:
    losses: list[float] = []
    folder = tmp_path / "model"
    files = tiny_model.raise_model(WORLD, 240, folder, lambda step, total, loss: losses.append(loss))
    assert losses[-1] < losses[0] - 1
    names = {path.name for path in files}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    tokenizer = load_tokenizer(folder)
    described = describe_checkpoint(open_checkpoint(folder), tokenizer, None)
    assert described.architecture == "LlamaForCausalLM"
    assert described.chat_template
    assert described.parameters < 1_000_000
    assert load_model(folder, "cpu").generation_config.eos_token_id == tokenizer.eos_token_id


def test_a_seed_gives_the_same_model(tmp_path: Path) -> None:
    def weights(name: str) -> bytes:
        tiny_model.raise_model(WORLD, 24, tmp_path / name, lambda step, total, loss: None)
        return (tmp_path / name / "model.safetensors").read_bytes()

    assert weights("first") == weights("second")
