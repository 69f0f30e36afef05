"""An adapter's self-test on the back end that serves it: what is right passes in any dtype, what is wrong does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from armature.contracts.artifacts import Canary
from armature.errors import AdapterBaseMismatch, InvalidAdapter
from armature.inference.self_test import self_test
from armature.inference.shared_weights import SharedWeights
from armature.modeling.adapters.arm import attach_stored, load_adapter, save_adapter
from armature.modeling.adapters.files import StoredAdapter, read_adapter
from armature.modeling.adapters.probe import LEAST_EFFECT, check_probe, record_probe
from tests.support.adapters import add_random_adapter
from tests.support.tiny_models import tiny_family

ATTRIBUTES = ["empathy", "helpfulness", "truthfulness"]
PREFERENCE = {"empathy": 0.5, "helpfulness": 0.3, "truthfulness": 0.2}
PROMPT = [5, 9, 17, 42, 80]
SIZES = {"strong": 0.05, "faint": 0.02}
"""Standard deviation of the adapter's tensors: effects of half a nat, and of hundredths."""
DTYPES = [torch.float32, torch.bfloat16]
BACKENDS = {"hf": False, "lean": True}

Fault = Callable[[StoredAdapter], StoredAdapter]


def base(dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> PreTrainedModel:
    """A Llama whose logits are as large as a real model's: a step between 16 and 32 is 0.125 in bfloat16."""
    model = tiny_family("llama", seed)
    model.model.norm.weight.data *= 60
    return model.to(dtype)


@dataclass(frozen=True)
class Saved:
    """An adapter as training leaves it: files and a probe."""

    folder: Path
    probe: Canary

    @classmethod
    def make(cls, folder: Path, dtype: torch.dtype, size: float) -> Saved:
        adapted = add_random_adapter(base(dtype), ATTRIBUTES, seed=1, size=size)
        save_adapter(adapted, folder)
        return cls(folder, record_probe(adapted, PROMPT, PREFERENCE))

    def serve(self, model: PreTrainedModel, backend: str, fault: Fault = lambda stored: stored) -> None:
        """Load as a decoder does, an adapter with a fault."""
        shared = SharedWeights(model, BACKENDS[backend])
        self_test(shared, attach_stored(shared.modules(), fault(read_adapter(self.folder))), self.probe)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[torch.dtype, str], Saved]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        (dtype, name): Saved.make(folder / f"{dtype}-{name}", dtype, size)
        for dtype in DTYPES
        for name, size in SIZES.items()
    }


Adapters = dict[tuple[torch.dtype, str], Saved]


@torch.no_grad()
def test_the_base_rounds_logits_as_real_ones_do() -> None:
    logits = base()(torch.tensor([PROMPT])).logits[0, -1].float()
    assert float(logits.abs().max()) > 16


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("served", DTYPES)
@pytest.mark.parametrize("stored", DTYPES)
def test_an_adapter_passes_in_every_dtype_it_may_be_served_in(
    stored: torch.dtype, served: torch.dtype, backend: str, adapters: Adapters
) -> None:
    for size in SIZES:
        adapters[stored, size].serve(base(stored).to(served), backend)


def test_an_evaluation_tests_an_adapter_on_its_plain_model(adapters: Adapters) -> None:
    faint = adapters[torch.bfloat16, "faint"]
    check_probe(load_adapter(base(), faint.folder), faint.probe)
    with pytest.raises(InvalidAdapter, match="differently"):
        check_probe(add_random_adapter(base(), ATTRIBUTES, seed=2, size=SIZES["faint"]), faint.probe)


def reversed_attributes(stored: StoredAdapter) -> StoredAdapter:
    stored.config.attributes = stored.config.attributes[::-1]
    return stored


def scaled(factor: float) -> Fault:
    def scale(stored: StoredAdapter) -> StoredAdapter:
        stored.config.lora_alpha *= factor
        return stored

    return scale


def exchanged_layers(stored: StoredAdapter) -> StoredAdapter:
    other = {"1": "2", "2": "1"}
    parts = {name: name.split(".") for name in stored.layers}
    renamed = {".".join([*part[:2], other.get(part[2], part[2]), *part[3:]]): name for name, part in parts.items()}
    return replace_layers(stored, {name: stored.layers[source] for name, source in renamed.items()})


def exchanged_projections(stored: StoredAdapter) -> StoredAdapter:
    """Keys and values have the same shapes."""
    layers = dict(stored.layers)
    one, two = (f"model.layers.1.self_attn.{name}_proj" for name in "kv")
    layers[one], layers[two] = layers[two], layers[one]
    return replace_layers(stored, layers)


def without(module: str) -> Fault:
    def drop(stored: StoredAdapter) -> StoredAdapter:
        return replace_layers(stored, {name: layer for name, layer in stored.layers.items() if name != module})

    return drop


def replace_layers(stored: StoredAdapter, layers: dict) -> StoredAdapter:
    stored.config.target_modules = sorted(layers)
    return stored._replace(layers=layers)


FAULTS: dict[str, Fault] = {
    "attributes in another order": reversed_attributes,
    "a scale of 1.2": scaled(1.2),
    "a scale of 0.5": scaled(0.5),
    "two layers exchanged": exchanged_layers,
    "keys and values exchanged": exchanged_projections,
    "no adapter on one attention": without("model.layers.3.self_attn.v_proj"),
    "no adapter on one MLP": without("model.layers.0.mlp.down_proj"),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_refused_on_a_bfloat16_base(fault: str, backend: str, adapters: Adapters) -> None:
    for size in SIZES:
        with pytest.raises(InvalidAdapter, match="differently"):
            adapters[torch.bfloat16, size].serve(base(), backend, FAULTS[fault])


@pytest.mark.parametrize("backend", BACKENDS)
def test_another_base_is_refused(backend: str, adapters: Adapters) -> None:
    edited = base()
    edited.model.layers[1].mlp.down_proj.weight.data *= 1.05
    for other in (base(seed=1), edited):
        with pytest.raises(AdapterBaseMismatch, match="nats away"):
            adapters[torch.bfloat16, "faint"].serve(other, backend)


def test_an_effect_within_the_noise_is_refused_when_it_is_recorded(tmp_path: Path) -> None:
    with pytest.raises(InvalidAdapter, match=f"no effect worth serving.*less than {LEAST_EFFECT}"):
        Saved.make(tmp_path / "arm", torch.bfloat16, 0.003)


def test_an_adapter_from_before_readings_is_compared_more_widely(adapters: Adapters) -> None:
    strong = adapters[torch.bfloat16, "strong"]
    older = strong.probe.model_copy(update={"readings": {}})
    near = older.model_copy(update={"log_probs": [value + 0.1 for value in older.log_probs]})
    silent = older.model_copy(update={"log_probs": older.base_log_probs})
    Saved(strong.folder, near).serve(base(), "lean")
    with pytest.raises(InvalidAdapter, match="differently"):
        Saved(strong.folder, silent).serve(base(), "lean")
