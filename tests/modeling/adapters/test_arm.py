"""Adapters on disk: which layers, the same bytes, strict loading, and the self-test."""

import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from armature.contracts.specs.arm import AdapterShape
from armature.errors import AdapterBaseMismatch, InvalidAdapter, InvalidRequest, InvalidSafetensors
from armature.modeling.adapters.arm import (
    create_arm,
    find_targets,
    load_adapter,
    save_adapter,
)
from armature.modeling.adapters.files import CONFIG, WEIGHTS
from armature.modeling.adapters.peft_pblora import adapter_layers, preferences
from armature.modeling.adapters.probe import check_probe, record_probe
from tests.support.tiny_models import tiny_llama

ATTRIBUTES = ["empathy", "helpfulness"]
PROMPT = [5, 9, 17, 42]
SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 64}
FAMILIES: dict[str, tuple[Callable[[], PreTrainedModel], set[str], set[str]]] = {
    "llama": (
        lambda: tiny_llama(layers=4),
        {f"self_attn.{n}_proj" for n in "qkvo"},
        {f"mlp.{n}_proj" for n in ("gate", "up", "down")},
    ),
    "mistral": (
        lambda: MistralForCausalLM(MistralConfig(**SIZES, num_key_value_heads=2, intermediate_size=48)),
        {f"self_attn.{n}_proj" for n in "qkvo"},
        {f"mlp.{n}_proj" for n in ("gate", "up", "down")},
    ),
    "qwen2": (
        lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, num_key_value_heads=2, intermediate_size=48)),
        {f"self_attn.{n}_proj" for n in "qkvo"},
        {f"mlp.{n}_proj" for n in ("gate", "up", "down")},
    ),
    "gpt2": (
        lambda: GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=4, n_head=4, vocab_size=64)),
        {"attn.c_attn", "attn.c_proj"},
        {"mlp.c_fc", "mlp.c_proj"},
    ),
    "gpt_neox": (
        lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, intermediate_size=48)),
        {"attention.query_key_value", "attention.dense"},
        {"mlp.dense_h_to_4h", "mlp.dense_4h_to_h"},
    ),
    "opt": (
        lambda: OPTForCausalLM(OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=32)),
        {f"self_attn.{n}_proj" for n in ("q", "k", "v", "out")},
        {"fc1", "fc2"},
    ),
}


def trained_arm(seed: int = 0, shape: AdapterShape | None = None, dtype: torch.dtype = torch.float32) -> PeftModel:
    """An adapter with an effect, on the tiny Llama."""
    torch.manual_seed(seed)
    arm = create_arm(tiny_llama().to(dtype), ATTRIBUTES, shape or AdapterShape(), "reference")
    for layer in adapter_layers(arm).values():
        torch.nn.init.normal_(layer.pblora_B["default"], std=0.3)
    return arm.eval()


@torch.no_grad()
def logits(arm: PeftModel) -> torch.Tensor:
    with preferences(arm, torch.tensor([[0.3, 0.7]])):
        return arm(torch.tensor([PROMPT])).logits


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_targets_by_kind_and_depth_in_every_family(family):
    make, attention, mlp = FAMILIES[family]
    model = make()
    for targets, expected in (("attention", attention), ("mlp", mlp), ("attention_and_mlp", attention | mlp)):
        for layers, indices in (("all", {"0", "1", "2", "3"}), ("upper_half", {"2", "3"})):
            found = find_targets(model, AdapterShape(targets=targets, layers=layers))
            parts = [name.split(".") for name in found]
            index = next(i for i, part in enumerate(parts[0]) if part.isdigit())
            assert {part[index] for part in parts} == indices
            assert {".".join(part[index + 1 :]) for part in parts} == expected
            assert len(found) == len(indices) * len(expected)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"llama"}))
def test_an_adapter_runs_in_every_family(family):
    model, ids = FAMILIES[family][0]().eval(), torch.tensor([PROMPT, PROMPT])
    with torch.no_grad():
        base = model(ids).logits
        arm = create_arm(model, ATTRIBUTES, AdapterShape(), "sum").eval()
        for layer in adapter_layers(arm).values():
            torch.nn.init.normal_(layer.pblora_B["default"], std=0.3)
        with preferences(arm, torch.ones(2, 2), torch.tensor([False, True])):
            out = arm(ids).logits
    assert torch.equal(out[0], base[0])
    assert not torch.allclose(out[1], base[1])


def test_a_model_without_such_layers_is_refused():
    model = FAMILIES["opt"][0]()
    linears = AdapterShape(targets="attention")
    for layer in model.model.decoder.layers:
        layer.self_attn = torch.nn.Identity()
    with pytest.raises(InvalidRequest, match="no attention projections") as caught:
        find_targets(model, linears)
    assert caught.value.param == "spec.adapter.targets"


def test_a_fresh_arm_is_the_identity_and_reproducible():
    torch.manual_seed(3)
    first = create_arm(tiny_llama(), ATTRIBUTES, AdapterShape(), "reference").eval()
    torch.manual_seed(3)
    second = create_arm(tiny_llama(), ATTRIBUTES, AdapterShape(), "reference").eval()
    assert torch.equal(logits(first), tiny_llama()(torch.tensor([PROMPT])).logits)
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, dict(second.named_parameters())[name])


def test_saving_and_loading_keeps_every_bit(tmp_path: Path):
    arm = trained_arm(shape=AdapterShape(rank_shared=0, rank_conditioned=2, alpha=3.0, layers="all"))
    save_adapter(arm, tmp_path / "a")
    save_adapter(arm, tmp_path / "b")
    assert {p.name for p in (tmp_path / "a").iterdir()} == {WEIGHTS, CONFIG}
    for name in (WEIGHTS, CONFIG):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    loaded = load_adapter(tiny_llama(), tmp_path / "a")
    assert torch.equal(logits(loaded), logits(arm))
    assert loaded.active_peft_config.loss_form == "reference"
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    save_adapter(loaded, tmp_path / "c")
    assert (tmp_path / "c" / CONFIG).read_bytes() == (tmp_path / "a" / CONFIG).read_bytes()


@pytest.mark.parametrize("layers", ["all", "upper_half"])
def test_an_adapter_of_many_layers_is_saved_under_their_full_names(tmp_path: Path, layers):
    """PEFT shortens lists of 20 names and more."""
    torch.manual_seed(0)
    arm = create_arm(tiny_llama(layers=8), ATTRIBUTES, AdapterShape(layers=layers), "reference").eval()
    for layer in adapter_layers(arm).values():
        torch.nn.init.normal_(layer.pblora_B["default"], std=0.3)
    save_adapter(arm, tmp_path / "a")
    loaded = load_adapter(tiny_llama(layers=8), tmp_path / "a")
    assert torch.equal(logits(loaded), logits(arm))
    save_adapter(loaded, tmp_path / "b")
    assert (tmp_path / "a" / CONFIG).read_bytes() == (tmp_path / "b" / CONFIG).read_bytes()


def test_adapters_are_loaded_concurrently(tmp_path: Path):
    """Warning filters are global to the process, and here every warning is an error."""
    save_adapter(trained_arm(), tmp_path / "a")
    bases = [tiny_llama() for _ in range(24)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            loaded = list(pool.map(lambda base: load_adapter(base, tmp_path / "a"), bases))
    finally:
        sys.setswitchinterval(interval)
    for one in loaded:
        assert torch.equal(logits(one), logits(loaded[0]))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_stock_peft_reads_the_folder(tmp_path: Path):
    arm = trained_arm()
    save_adapter(arm, tmp_path / "a")
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_llama(), tmp_path / "a").eval()), logits(arm))


def test_no_machine_path_is_written(tmp_path: Path):
    arm = trained_arm()
    arm.active_peft_config.base_model_name_or_path = "/somewhere/private"
    save_adapter(arm, tmp_path / "a")
    assert b"private" not in (tmp_path / "a" / CONFIG).read_bytes()


def drop_a_key(state):
    state.pop(sorted(state)[0])


def add_a_key(state):
    state["base_model.model.extra"] = torch.ones(1)


def change_a_shape(state):
    key = next(key for key in state if key.endswith("pblora_W2"))
    state[key] = torch.ones(3, 16)


def put_a_nan(state):
    next(iter(state.values()))[0, 0] = float("nan")


def store_half_precision(state):
    key = sorted(state)[0]
    state[key] = state[key].half()


@pytest.mark.bad_input(37)
@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (drop_a_key, InvalidAdapter, "lacks"),
        (add_a_key, InvalidAdapter, "unknown"),
        (change_a_shape, InvalidAdapter, "other shapes"),
        (put_a_nan, InvalidSafetensors, "NaN"),
        (store_half_precision, InvalidSafetensors, "accepted are F32"),
    ],
)
def test_missing_extra_and_reshaped_tensors_are_refused(tmp_path: Path, damage, error, message):
    save_adapter(trained_arm(), tmp_path / "a")
    state = load_file(tmp_path / "a" / WEIGHTS)
    damage(state)
    save_file(state, tmp_path / "a" / WEIGHTS)
    with pytest.raises(error, match=message) as caught:
        load_adapter(tiny_llama(), tmp_path / "a")
    assert caught.value.param == WEIGHTS


@pytest.mark.bad_input(39)
@pytest.mark.parametrize(
    "change",
    [
        {"peft_type": "LORA"},
        {"rank_shared": 10**9},
        {"rank_conditioned": 0},
        {"alpha": float("nan")},
        {"target_modules": ["(a+)+$"]},
        {"rank_conditioned": "4"},
        {"attributes": []},
        {"target_modules": "q_proj"},
        {"target_modules": ["model.layers.9.self_attn.q_proj"]},
        {"auto_mapping": {"base_model_class": "Evil"}, "surprise": 1},
    ],
)
def test_contradictory_adapter_configs_are_refused(tmp_path: Path, change):
    save_adapter(trained_arm(), tmp_path / "a")
    path = tmp_path / "a" / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InvalidAdapter):
        load_adapter(tiny_llama(), tmp_path / "a")


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff"])
def test_a_broken_config_is_refused(tmp_path: Path, content):
    save_adapter(trained_arm(), tmp_path / "a")
    (tmp_path / "a" / CONFIG).write_bytes(content)
    with pytest.raises(InvalidAdapter):
        load_adapter(tiny_llama(), tmp_path / "a")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_probe_passes_where_it_was_recorded_and_after_loading(tmp_path: Path, dtype):
    arm = trained_arm(dtype=dtype).train()
    probe = record_probe(arm, PROMPT, {"empathy": 1, "helpfulness": 3})
    assert arm.training
    save_adapter(arm, tmp_path / "a")
    check_probe(load_adapter(tiny_llama().to(dtype), tmp_path / "a"), probe)
    for other in (torch.float32, torch.bfloat16):  # a decoder may serve in another dtype
        check_probe(load_adapter(tiny_llama().to(dtype).to(other), tmp_path / "a"), probe)


def test_the_probe_catches_an_ineffective_or_foreign_adapter_or_base(tmp_path: Path):
    arm = trained_arm()
    probe = record_probe(arm, PROMPT, {"empathy": 1})
    silent = create_arm(tiny_llama(), ATTRIBUTES, AdapterShape(), "reference")
    with pytest.raises(InvalidAdapter, match="differently"):
        check_probe(silent, probe)
    with pytest.raises(InvalidAdapter, match="no effect"):
        record_probe(silent, PROMPT, {"empathy": 1})
    with pytest.raises(InvalidAdapter, match="differently"):
        check_probe(trained_arm(1), probe)
    save_adapter(arm, tmp_path / "a")
    with pytest.raises(AdapterBaseMismatch, match="nats away"):
        check_probe(load_adapter(tiny_llama(1), tmp_path / "a"), probe)
    with pytest.raises(AdapterBaseMismatch, match="does not have"):
        check_probe(arm, probe.model_copy(update={"token_ids": [10**6]}))
    with pytest.raises(InvalidAdapter, match="different numbers"):
        check_probe(arm, probe.model_copy(update={"log_probs": [0.0]}))


@pytest.mark.trap(8)
def test_attributes_in_another_order_are_another_adapter():
    arm = trained_arm()
    probe = record_probe(arm, PROMPT, {"empathy": 1})
    arm.active_peft_config.attributes.reverse()
    with pytest.raises(InvalidAdapter, match="differently"):
        check_probe(arm, probe)
