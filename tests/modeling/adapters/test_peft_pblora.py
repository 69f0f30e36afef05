"""The seam between PBLoRA and stock PEFT, and a preference per row in a whole model."""

import copy
from pathlib import Path

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from transformers import DynamicCache

from armature.algorithms.conditioned_lora import delta_weight
from armature.modeling.adapters.pblora_config import PBLoRAConfig
from armature.modeling.adapters.peft_pblora import (
    adapter_layers,
    enable_gradient_checkpointing,
    preferences,
    set_training,
)
from tests.support.tiny_models import tiny_llama

# PEFT 0.21.2 reads a property of transformers 5.23 under its deprecated name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

ATTRIBUTES = ["empathy", "truthfulness", "helpfulness"]
TARGETS = ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"]


def make_config(**overrides: object) -> PBLoRAConfig:
    return PBLoRAConfig(**{"attributes": ATTRIBUTES, "target_modules": TARGETS, **overrides})


def make_model(seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: object) -> PeftModel:
    """A tiny Llama with an adapter that has an effect (B is not zero)."""
    torch.manual_seed(seed)
    model = get_peft_model(tiny_llama().to(dtype), make_config(**overrides)).eval()
    for layer in adapter_layers(model).values():
        for b in layer.pblora_B.values():
            torch.nn.init.normal_(b, std=0.3)
    return model


def tokens(rows: int = 3, length: int = 6) -> torch.Tensor:
    return torch.randint(3, 259, (rows, length), generator=torch.Generator().manual_seed(5))


def mixed(rows: int = 3) -> torch.Tensor:
    return torch.rand(rows, len(ATTRIBUTES), generator=torch.Generator().manual_seed(6)).softmax(-1)


@torch.no_grad()
def logits(model: PeftModel, ids: torch.Tensor, p: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
    with preferences(model, p, gate):
        return model(ids).logits


@torch.no_grad()
def test_a_row_equals_a_base_model_with_its_delta_folded_in():
    model, ids, p = make_model(), tokens(), mixed()
    guided = logits(model, ids, p)
    for row in range(3):
        folded = tiny_llama()
        for name, layer in adapter_layers(model).items():
            delta = delta_weight(layer.weights("default"), p[row], layer.pblora_config["default"].shape)
            folded.get_submodule(name).weight += delta
        torch.testing.assert_close(folded(ids[row : row + 1]).logits[0], guided[row], atol=1e-4, rtol=1e-4)
    assert (guided - tiny_llama()(ids).logits).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gated_off_rows_are_the_base_bit_for_bit(dtype):
    model, ids, p = make_model(dtype=dtype), tokens(4), mixed(4)
    gate = torch.tensor([False, True, False, True])
    out, base = logits(model, ids, p, gate), tiny_llama().to(dtype)(ids).logits
    assert out.dtype == dtype
    assert torch.equal(out[~gate], base[~gate])
    assert not torch.isclose(out[gate], base[gate]).all(-1).any()
    assert torch.equal(logits(model, ids, p, torch.zeros(4, dtype=torch.bool)), base)
    assert all(t.dtype == torch.float32 for layer in adapter_layers(model).values() for t in layer.weights("default"))


def test_rows_with_different_preferences_equal_each_preference_alone():
    model, ids, p = make_model(), tokens(), mixed()
    together = logits(model, ids, p)
    for row in range(3):
        alone = logits(model, ids, p[row].expand(3, -1))
        torch.testing.assert_close(together[row], alone[row], atol=1e-5, rtol=1e-5)


@pytest.mark.trap(19)
def test_merging_is_refused_and_changes_nothing():
    model, ids, p = make_model(), tokens(), mixed()
    before = logits(model, ids, p)
    refused = (model.merge_and_unload, model.merge_adapter, model.base_model.merge_and_unload, model.unmerge_adapter)
    for merge in refused:
        with pytest.raises(ValueError, match="depend on the preference"):
            merge()
    with pytest.raises(ValueError, match="depend on the preference"):
        next(iter(adapter_layers(model).values())).merge()
    assert torch.equal(logits(model, ids, p), before)


def test_a_forward_pass_without_preferences_says_what_is_missing():
    model = make_model()
    with pytest.raises(RuntimeError, match="preference per row"):
        model(tokens())
    with model.disable_adapter():
        assert torch.equal(model(tokens()).logits, tiny_llama()(tokens()).logits)


@pytest.mark.parametrize(
    ("p", "gate", "message"),
    [
        (torch.ones(3, 2), None, "p_rows must be"),
        (torch.ones(3), None, "p_rows must be"),
        (torch.ones(3, 3), torch.ones(2, dtype=torch.bool), "gate must be"),
        (torch.ones(3, 3), torch.ones(3), "gate must be"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(p, gate, message):
    model = make_model()
    with pytest.raises(ValueError, match=message), preferences(model, p, gate):
        pytest.fail("not reached")


def test_a_batch_of_another_size_than_the_preferences_is_refused():
    with pytest.raises(RuntimeError, match="set for 2 rows"):
        logits(make_model(), tokens(3), mixed(2))
    with pytest.raises(TypeError, match="no PBLoRA adapter"), preferences(tiny_llama(), mixed()):
        pytest.fail("not reached")


def test_contexts_nest_and_are_put_back_when_the_body_fails():
    model, ids, p = make_model(), tokens(), mixed()
    with torch.no_grad(), preferences(model, p):
        outer = model(ids).logits
        with preferences(model, p.flip(0)):
            assert not torch.equal(model(ids).logits, outer)
        with pytest.raises(KeyError), preferences(model, p.flip(0)):
            raise KeyError
        assert torch.equal(model(ids).logits, outer)
    with pytest.raises(RuntimeError, match="preference per row"):
        model(ids)


def test_stock_peft_saves_loads_switches_and_deletes(tmp_path: Path):
    first, second, ids, p = make_model(1), make_model(2), tokens(), mixed()
    first.save_pretrained(tmp_path / "first")
    second.save_pretrained(tmp_path / "second")
    model = PeftModel.from_pretrained(tiny_llama(), tmp_path / "first").eval()
    assert torch.equal(logits(model, ids, p), logits(first, ids, p))
    assert model.peft_config["default"].attributes == ATTRIBUTES
    model.load_adapter(tmp_path / "second", "other")
    assert torch.equal(logits(model, ids, p), logits(first, ids, p))
    model.set_adapter("other")
    assert torch.equal(logits(model, ids, p), logits(second, ids, p))
    with pytest.warns(UserWarning, match="active which is now deleted"):
        model.delete_adapter("other")
    assert torch.equal(logits(model, ids, p), logits(first, ids, p))
    assert torch.equal(model.unload()(ids).logits, tiny_llama()(ids).logits)


def test_adding_an_adapter_leaves_the_active_one_alone():
    model, ids, p = make_model(1, layers_to_transform=[1]), tokens(), mixed()
    before = logits(model, ids, p)
    model.add_adapter("wide", make_config(rank_conditioned=2))
    assert torch.equal(logits(model, ids, p), before)
    assert len(adapter_layers(model)) == 2 * len(TARGETS)
    model.set_adapter("wide")
    assert torch.equal(logits(model, ids, p), tiny_llama()(ids).logits)  # B = 0: it starts as the identity
    model.base_model.set_adapter(["default", "wide"])
    assert torch.equal(logits(model, ids, p), before)
    model.delete_adapter("wide")
    assert list(model.peft_config) == ["default"]
    assert torch.equal(logits(model, ids, p), before)


def test_several_adapters_are_saved_side_by_side_and_loaded_one_by_one(tmp_path: Path):
    model, ids, p = make_model(1), tokens(), mixed()
    model.add_adapter("other", make_config(rank_shared=0, layers_to_transform=[0]))
    for layer in adapter_layers(model).values():
        if "other" in layer.pblora_B:
            torch.nn.init.normal_(layer.pblora_B["other"], std=0.3)
    wanted = {}
    for name in ("default", "other"):
        model.set_adapter(name)
        wanted[name] = logits(model, ids, p)
    model.save_pretrained(tmp_path)
    for name, folder in {"default": tmp_path, "other": tmp_path / "other"}.items():
        assert isinstance(PeftConfig.from_pretrained(folder), PBLoRAConfig)
        assert torch.equal(logits(PeftModel.from_pretrained(tiny_llama(), folder).eval(), ids, p), wanted[name])


@pytest.mark.trap(8)
def test_adapters_of_another_attribute_order_are_refused():
    model = make_model()
    model.add_adapter("other", make_config(attributes=ATTRIBUTES[::-1]))
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(ValueError, match="attributes differ"):
        logits(model, tokens(), mixed())


def test_peft_s_adapter_names_are_refused_rather_than_ignored():
    model = make_model()
    with pytest.raises(ValueError, match="adapter_names is not supported"), preferences(model, mixed()):
        model(tokens(), adapter_names=["default", "__base__", "default"])


def test_a_second_adapter_may_know_other_attributes():
    model, ids = make_model(1), tokens()
    model.add_adapter("other", make_config(attributes=["calm"], rank_conditioned=2))
    model.set_adapter("other")
    assert logits(model, ids, torch.ones(3, 1)).shape == (3, 6, 259)
    with pytest.raises(ValueError, match="p_rows must be"):
        logits(model, ids, mixed())


def test_saved_config_does_not_depend_on_the_order_of_a_set():
    names = [f"model.layers.{i}.self_attn.{proj}_proj" for i in range(6) for proj in "qkvo"]
    torch.manual_seed(0)
    model = get_peft_model(tiny_llama(layers=6), make_config(target_modules=names))
    targets = model.peft_config["default"].to_dict()["target_modules"]
    assert targets == sorted(targets)
    assert len(adapter_layers(model)) == 24


def test_layers_to_transform_picks_layers():
    model = make_model(layers_to_transform=[1])
    assert {name.split(".")[2] for name in adapter_layers(model)} == {"1"}


@pytest.mark.parametrize("bad", [{"attributes": []}, {"attributes": ["a", "a"]}, {"rank_conditioned": 0}])
def test_bad_configs_are_refused(bad):
    with pytest.raises(ValueError, match=r"attributes|rank"):
        make_config(**bad)


def test_only_linear_layers_can_be_adapted():
    with pytest.raises(ValueError, match="linear layers only"):
        make_model(target_modules=["input_layernorm"])


def adapter_gradients(model: PeftModel) -> list[torch.Tensor]:
    gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    assert gradients
    return [gradient for gradient in gradients if gradient is not None]


@pytest.mark.trap(10)
def test_recomputation_keeps_the_preference_of_the_forward_pass():
    plain, ids, p = make_model(), tokens(), mixed()
    checkpointed = copy.deepcopy(plain)
    enable_gradient_checkpointing(checkpointed)
    for model in (plain, checkpointed):
        model.train()
        with preferences(model, p):
            loss = model(ids).logits.square().mean()
        with preferences(model, p.flip(0)):  # another batch's context must not leak into the recomputation
            loss.backward()
    for expected, got in zip(adapter_gradients(plain), adapter_gradients(checkpointed), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)


def test_dropout_acts_in_training_only():
    model, ids, p = make_model(dropout=0.5), tokens(), mixed()
    assert torch.equal(logits(model, ids, p), logits(model, ids, p))
    plain = logits(model, ids, p)
    set_training(model, True)
    with pytest.raises(RuntimeError, match="seed per row"):
        logits(model, ids, p)
    seeds = torch.arange(3)
    with torch.no_grad(), preferences(model, p, seeds=seeds):
        dropped = model(ids).logits
        assert torch.equal(model(ids).logits, dropped)
    assert not torch.isclose(dropped, plain).all(-1).any()
    padded = torch.cat([ids[1:], torch.zeros(2, 3, dtype=torch.long)], 1)
    with torch.no_grad(), preferences(model, p[1:], seeds=seeds[1:]):
        alone = model(padded).logits[:, : ids.shape[1]]
    torch.testing.assert_close(alone, dropped[1:], atol=1e-5, rtol=1e-5)


def test_only_the_adapter_is_trained_and_saved():
    model = make_model()
    assert all("pblora_" in name for name, parameter in model.named_parameters() if parameter.requires_grad)
    assert len(get_peft_model_state_dict(model)) == 4 * len(adapter_layers(model))


@pytest.mark.trap(20)
@torch.no_grad()
def test_a_cache_belongs_to_its_preference():
    model, ids = make_model(), tokens(1).expand(4, -1)
    p, gate = torch.eye(3)[[0, 1, 0, 1]], torch.tensor([True, True, False, False])
    with preferences(model, p, gate):
        cache = model(ids, use_cache=True).past_key_values
    plain = tiny_llama()(ids, use_cache=True).past_key_values
    for got, base in zip(cache.layers, plain.layers, strict=True):
        assert torch.equal(got.keys[2], got.keys[3])
        assert torch.equal(got.values[2:], base.values[2:])
    assert not torch.allclose(cache.layers[1].keys[0], cache.layers[1].keys[1], atol=1e-3)
    with preferences(model, p[1:2]):  # going on from another preference's cache is not what that preference says
        fresh = model(ids[:1]).logits[0, -1]
        reused = DynamicCache()
        for layer, entries in enumerate(cache.layers):
            reused.update(entries.keys[:1, :, :-1], entries.values[:1, :, :-1], layer)
        stale = model(ids[:1, -1:], past_key_values=reused).logits[0, -1]
    assert not torch.allclose(fresh, stale, atol=1e-2)
