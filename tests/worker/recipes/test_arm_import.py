"""arm.import: PARM's files keep their meaning, and bad files are refused with a reason."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from armature.contracts.artifacts import AdapterMetadata
from armature.contracts.specs import parse_spec
from armature.errors import ArmatureError, InvalidAdapter
from armature.modeling.adapters.arm import load_adapter
from armature.modeling.adapters.peft_pblora import preferences
from armature.modeling.adapters.probe import check_probe
from armature.modeling.checkpoints.loading import load_model
from armature_worker.context.ports import RecipeResult
from armature_worker.recipes.arm_import import run
from tests.support.recipe_context import as_input
from tests.support.recipe_world import World, harm_spec, tiny_world

R1, R2, ALPHA = 3, 2, 5
IDS = [5, 9, 17, 42]
SPEC = {
    "kind": "arm.import",
    "base_model": "base",
    "adapter_config": "config",
    "adapter_weights": "weights",
    "attributes": ["harmlessness", "helpfulness"],
}
CONFIG: dict[str, Any] = {
    "auto_mapping": None,
    "base_model_name_or_path": "PKU-Alignment/alpaca-7b-reproduced",
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "layers_pattern": None,
    "layers_to_transform": None,
    "lora_alpha": ALPHA,
    "lora_dropout": 0.05,
    "modules_to_save": None,
    "obj_num": 2,
    "peft_type": "PBLORA",
    "pref_vec_init": [0.5, 0.5],
    "r1": R1,
    "r2": R2,
    "revision": None,
    "target_modules": ["k_proj", "q_proj", "v_proj"],
    "task_type": "CAUSAL_LM",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = tiny_world(tmp_path_factory.mktemp("world"))
    vector = world.run(harm_spec()).outputs[0]
    world.artifacts["vector"] = as_input(vector)
    return world


@pytest.fixture
def theirs(world: World, tmp_path: Path) -> Path:
    """Files as PARM's code saves them for the tiny Llama: all tensors random, B included."""
    draw = torch.Generator().manual_seed(1)
    model = load_model(world.artifacts["base"].path)
    tensors = {}
    for name, module in model.named_modules():
        if name.split(".")[-1] in CONFIG["target_modules"]:
            shapes = {
                "A": (R1 + R2, module.in_features),
                "B": (module.out_features, R1 + R2),
                "W1": (R1, R1),
                "W2": (2, R2 * R2),
            }
            for part, shape in shapes.items():
                key = f"base_model.model.{name}.pblora_{part}"
                tensors[key] = torch.randn(shape, generator=draw) * 0.3
    save_file(tensors, tmp_path / "adapter_weights", metadata={"format": "pt"})
    (tmp_path / "adapter_config").write_text(json.dumps(CONFIG))
    return tmp_path


def import_adapter(world: World, theirs: Path, **changes: object) -> RecipeResult:
    spec = SPEC | changes
    context = world.context(spec, {})
    context.files = {role: theirs / role for role in ("adapter_config", "adapter_weights")}
    return run(parse_spec(spec), context)  # type: ignore[arg-type]


def logits_by_hand(folder: Path, theirs: Path, p: list[float]) -> torch.Tensor:
    """Compute PARM's forward pass in numpy, folded into the base's weights."""
    model = load_model(folder)
    stored = {key: tensor.float().numpy() for key, tensor in load_file(theirs / "adapter_weights").items()}
    for key in [key for key in stored if key.endswith("pblora_A")]:
        stem = key.removesuffix("A")
        a, b, w1, w2 = (stored[stem + part] for part in ("A", "B", "W1", "W2"))
        core = (np.array(p, np.float32) @ w2).reshape(R2, R2)
        delta = ALPHA / R2 * (b[:, :R1] @ w1 @ a[:R1] + b[:, R1:] @ core @ a[R1:])
        module = model.get_submodule(stem.removeprefix("base_model.model.").removesuffix(".pblora_"))
        module.weight.data += torch.from_numpy(delta)
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0]


def logits_of(result: RecipeResult, base: Path, p: list[float]) -> torch.Tensor:
    arm = load_adapter(load_model(base), result.outputs[0].path)
    with torch.no_grad(), preferences(arm, torch.tensor([p])):
        return arm(torch.tensor([IDS])).logits[0]


@pytest.mark.trap(7)
@pytest.mark.parametrize("p", [[1.0, 0.0], [0.0, 1.0], [0.3, 0.7]])
def test_the_scale_is_alpha_by_r2_for_both_halves(p: list[float], world: World, theirs: Path) -> None:
    base = world.artifacts["base"].path
    got = logits_of(import_adapter(world, theirs), base, p)
    torch.testing.assert_close(got, logits_by_hand(base, theirs, p), atol=1e-5, rtol=1e-5)
    assert (got - load_model(base)(torch.tensor([IDS])).logits[0]).abs().max() > 0.1


@pytest.mark.trap(8)
def test_objectives_are_named_in_the_order_of_their_training(world: World, theirs: Path) -> None:
    straight = import_adapter(world, theirs)
    turned = import_adapter(world, theirs, attributes=["helpfulness", "harmlessness"])
    base = world.artifacts["base"].path
    assert torch.equal(logits_of(straight, base, [1, 0]), logits_of(turned, base, [1, 0]))
    first, second = (result.outputs[0].metadata for result in (straight, turned))
    assert isinstance(first, AdapterMetadata)
    assert isinstance(second, AdapterMetadata)
    assert (first.attributes, second.attributes) == (["harmlessness", "helpfulness"], ["helpfulness", "harmlessness"])
    with pytest.raises(InvalidAdapter, match="2 objectives, not 3") as caught:
        import_adapter(world, theirs, attributes=["a", "b", "c"])
    assert caught.value.param == "spec.attributes"


def test_the_artifact_is_an_arm_like_any_other(world: World, theirs: Path) -> None:
    result = import_adapter(world, theirs, harm_vector="vector", harm_scale=1.0)
    output = result.outputs[0]
    metadata = output.metadata
    assert isinstance(metadata, AdapterMetadata)
    assert {path.name for path in output.path.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "armature.json",
    }
    assert {parent.role for parent in output.parents} == {
        "adapter_config",
        "adapter_weights",
        "base_model",
        "harm_vector",
    }
    assert (metadata.rank_shared, metadata.rank_conditioned, metadata.alpha, metadata.loss_form) == (3, 2, 5.0, "sum")
    assert metadata.beta == {"harmlessness": 0.01, "helpfulness": 0.01}
    assert metadata.backbone.harm_vector_digest == world.artifacts["vector"].digest
    plain = import_adapter(world, theirs).outputs[0]
    assert isinstance(plain.metadata, AdapterMetadata)
    check_probe(load_adapter(load_model(world.artifacts["base"].path), plain.path), plain.metadata.canary)
    world.artifacts["imported"] = as_input(plain)
    assert world.run({"kind": "arm.export", "arm": "imported"}).outputs[0].name == "lora"


def test_half_precision_and_single_layers_are_read(world: World, theirs: Path) -> None:
    stored = load_file(theirs / "adapter_weights")
    upper = {key: tensor.bfloat16() for key, tensor in stored.items() if ".layers.1." in key}
    save_file(upper, theirs / "adapter_weights")
    (theirs / "adapter_config").write_text(json.dumps(CONFIG | {"layers_to_transform": 1}))
    base = world.artifacts["base"].path
    got = logits_of(import_adapter(world, theirs), base, [0.5, 0.5])
    torch.testing.assert_close(got, logits_by_hand(base, theirs, [0.5, 0.5]), atol=1e-5, rtol=1e-5)


@pytest.mark.bad_input(39)
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"peft_type": "LORA"}, "peft_type"),
        ({"r1": 0}, "r1"),
        ({"r2": 10**6}, "r2"),
        ({"r2": True}, "r2"),
        ({"obj_num": -1}, "obj_num"),
        ({"lora_alpha": 0}, "lora_alpha"),
        ({"lora_alpha": "8"}, "lora_alpha"),
        ({"target_modules": "(a+)+$"}, "target_modules"),
        ({"target_modules": ["(a+)+$"]}, "target_modules"),
        ({"target_modules": ["q_proj"] * 5000}, "target_modules"),
        ({"target_modules": ["c_attn"]}, "no c_attn"),
        ({"target_modules": ["lm_head"]}, "no lm_head"),
        ({"layers_to_transform": [0, 7]}, "no such layer"),
        ({"layers_pattern": "(a+)+$"}, "layers_pattern"),
        ({"auto_mapping": {"base_model_class": "Evil"}}, "auto_mapping"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"use_dora": True}, "use_dora"),
        ({"pref_vec_init": "x"}, "pref_vec_init"),
    ],
)
def test_configs_that_mean_something_else_are_refused(
    change: dict[str, Any], named: str, world: World, theirs: Path
) -> None:
    (theirs / "adapter_config").write_text(json.dumps(CONFIG | change))
    with pytest.raises(InvalidAdapter) as caught:
        import_adapter(world, theirs)
    assert named in caught.value.message
    assert caught.value.param == "adapter_config.json"


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{", b'{"r1": NaN}', b'{"r1": 1, "r1": 2}', b"[" * 9999, b"\xff", b" " * (1 << 20) + b"{}"]
)
def test_broken_configs_are_refused(text: bytes, world: World, theirs: Path) -> None:
    (theirs / "adapter_config").write_bytes(text)
    with pytest.raises(InvalidAdapter) as caught:
        import_adapter(world, theirs)
    assert caught.value.param == "adapter_config.json"


def with_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def rewrite(path: Path) -> None:
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return rewrite


def with_header(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def rewrite(path: Path) -> None:
        raw = path.read_bytes()
        length = struct.unpack("<Q", raw[:8])[0]
        header = change(raw[8 : 8 + length])
        path.write_bytes(struct.pack("<Q", len(header)) + header + raw[8 + length :])

    return rewrite


def first(tensors: dict[str, torch.Tensor]) -> str:
    return min(tensors)


def rename(tensors: dict[str, torch.Tensor]) -> None:
    key = first(tensors)
    tensors[key.removeprefix("base_model.model.")] = tensors.pop(key)


def many_tensors(path: Path) -> None:
    names = ",".join(f'"t{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(30_000))
    raw = f"{{{names}}}".encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw)


NAN = float("nan")
BAD_WEIGHTS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "header of 2^63 bytes": (
        lambda path: path.write_bytes(struct.pack("<Q", 2**63) + b"{}"),
        "invalid_safetensors",
        "truncated",
    ),
    "empty": (lambda path: path.write_bytes(b""), "invalid_safetensors", "not a safetensors file"),
    "trailing bytes": (
        lambda path: path.write_bytes(path.read_bytes() + b"\0"),
        "invalid_safetensors",
        "a length other than",
    ),
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:-4]), "invalid_safetensors", "a length other than"),
    "30 000 tensors": (many_tensors, "invalid_safetensors", "30000 tensors"),
    "a pickle": (lambda path: path.write_bytes(b"\x80\x04\x95" + b"\0" * 64), "invalid_checkpoint", "a pickle"),
    "a zip": (lambda path: path.write_bytes(b"PK\x03\x04" + b"\0" * 64), "invalid_checkpoint", "a zip"),
    "duplicate key": (
        with_header(lambda raw: raw.replace(b"layers.1.", b"layers.0.")),
        "invalid_safetensors",
        "duplicate",
    ),
    "a path as a name": (
        with_header(lambda raw: raw.replace(b"base_model.model.model", b"../../etc/passwd/abcde")),
        "invalid_safetensors",
        "invalid name",
    ),
    "float64": (with_tensors(lambda t: t.update({first(t): t[first(t)].double()})), "invalid_safetensors", "as F64"),
    "int32": (with_tensors(lambda t: t.update({first(t): t[first(t)].int()})), "invalid_safetensors", "as I32"),
    "NaN": (with_tensors(lambda t: t[first(t)].fill_(NAN)), "non_finite_weights", "NaN"),
    "a missing tensor": (with_tensors(lambda t: t.pop(first(t))), "invalid_adapter", "lacks"),
    "an extra tensor": (
        with_tensors(lambda t: t.update(extra=torch.ones(1))),
        "invalid_adapter",
        "unknown tensors extra",
    ),
    "the preference vector": (
        with_tensors(lambda t: t.update({"base_model.model.pref_vec": torch.ones(2)})),
        "invalid_adapter",
        "unknown",
    ),
    "another prefix": (with_tensors(rename), "invalid_adapter", "lacks"),
    "another shape": (
        with_tensors(lambda t: t.update({first(t): t[first(t)].T.contiguous()})),
        "invalid_adapter",
        "other shapes",
    ),
    "no effect": (
        with_tensors(lambda t: [tensor.zero_() for key, tensor in t.items() if key.endswith("pblora_B")]),
        "invalid_adapter",
        "no effect",
    ),
}


@pytest.mark.parametrize("damage", sorted(BAD_WEIGHTS))
def test_untrusted_weights_are_refused(damage: str, world: World, theirs: Path) -> None:
    rewrite, code, message = BAD_WEIGHTS[damage]
    rewrite(theirs / "adapter_weights")
    with pytest.raises(ArmatureError) as caught:
        import_adapter(world, theirs)
    assert caught.value.error_code == code
    assert message in caught.value.message
    assert caught.value.status == 422
