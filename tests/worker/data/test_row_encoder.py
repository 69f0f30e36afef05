"""Rows that a chat template refuses are found before training, by data set, line and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from armature.contracts.chat import AS_SENT, ChatFormat
from armature.contracts.datasets import PromptCompletionRow
from armature.errors import InvalidDataset
from armature_worker.context.local import LocalContext
from armature_worker.data.tokenized import RowEncoder, load_rows
from tests.support.recipe_world import DATA, World, arm_spec, evaluation_spec, harm_spec
from tests.support.tiny_models import byte_tokenizer, save_tiny_checkpoint, tiny_llama

pytestmark = pytest.mark.slow  # templates have processes of their own

STRICT = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
)
TOLD = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "eve is sad."}]
TWICE = [{"role": "user", "content": "hi."}, {"role": "user", "content": "eve is sad."}]
FINE = [{"role": "user", "content": "bob is sad."}]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = World(tmp_path_factory.mktemp("world"))
    world.import_model(save_tiny_checkpoint(world.folder / "source", tiny_llama(), STRICT))
    return world


def rows_with(prompt: Any, **columns: Any) -> list[dict[str, Any]]:
    return [{"prompt": one, **columns} for one in (FINE, FINE, prompt, FINE)]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


CASES: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "harm_vector.build": (harm_spec(), "harmful_pairs", {"completion": said(" zorble.")}),
    "arm.train": (
        arm_spec(attributes=["empathy"]),
        "pairs",
        {"chosen": said(" a."), "rejected": said(" b."), "attribute": "empathy"},
    ),
    "evaluation.run": (evaluation_spec(), "prompts", {}),
}


@pytest.mark.parametrize("prompt", [TOLD, TWICE])
@pytest.mark.parametrize("kind", CASES)
def test_a_refused_row_is_named_before_any_weight_is_loaded(
    world: World, kind: str, prompt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, role, columns = CASES[kind]
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", None)
    with pytest.raises(InvalidDataset, match=f"line 3 of {role}, field messages: .*roles must alternate") as refused:
        world.run(spec, {**DATA, role: rows_with(prompt, **columns)})
    assert refused.value.param == f"spec.{role}"


@pytest.mark.parametrize("prompt", [TOLD, TWICE])
@pytest.mark.parametrize("kind", ["harm_vector.build", "arm.train"])
def test_the_same_rows_train_with_turns_joined(world: World, kind: str, prompt: Any) -> None:
    spec, role, columns = CASES[kind]
    spec = {**spec, "chat": {"turns": "alternating"}}
    assert world.run(spec, {**DATA, role: rows_with(prompt, **columns)}).outputs


def test_a_role_of_developer_is_a_row_like_one_of_system(tmp_path: Path) -> None:
    rows = [
        {"prompt": [{**TOLD[0], "role": role}, TOLD[1]], "completion": said("yes")} for role in ("system", "developer")
    ]
    (tmp_path / "rows").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    encoder = RowEncoder(byte_tokenizer(STRICT), ChatFormat(turns="alternating"), tmp_path / "rows", "pairs")
    read = load_rows(LocalContext(tmp_path, files={"pairs": tmp_path / "rows"}), "pairs", PromptCompletionRow)
    first, second = (encoder.tokenise(row.prompt, [row.completion], 256) for row in read)
    assert first == second != encoder.tokenise("eve is sad.", ["yes"], 256)
    assert AS_SENT.turns == "as_sent"
