"""An ARM's probe: its self-test, recorded after training and repeated wherever the adapter is loaded.

Both sides compute in float32 on the weights as they are served (:mod:`armature.modeling.float32_forward`). Between back
ends and machines that differs by less than 1e-4 nats; in bfloat16 by up to 0.3, more than many an adapter's effect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from peft import PeftModel
from torch import Tensor

from armature.contracts.artifacts import Canary, Dtype, Reading
from armature.contracts.preferences import preference_vector
from armature.errors import AdapterBaseMismatch, InvalidAdapter
from armature.modeling.adapters.files import WEIGHTS
from armature.modeling.adapters.peft_pblora import preferences
from armature.modeling.float32_forward import float32_forward

_TOP_TOKENS = 8
_DTYPES: dict[Dtype, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

LEAST_EFFECT = 2e-3
"""Nats by which an adapter has to move one of the probe's log-probabilities: four times the noise."""
_BASE_DRIFT = 1e-2
_EFFECT_NOISE, _EFFECT_SHARE = 5e-4, 0.01
"""Bound on an effect's error: nats, and a share of the effect."""
_OLDER_TOLERANCE: dict[Dtype, float] = {"float32": 1e-2, "bfloat16": 0.25, "float16": 0.25}
"""Nats, by the dtype that a probe without readings was computed in."""


def record_probe(model: PeftModel, token_ids: Sequence[int], preference: Mapping[str, float]) -> Canary:
    """Record the next-token log-probabilities after ``token_ids``, with the adapter on and off.

    There is a reading for every dtype that the weights may be served in.

    Args:
        model: The adapter on its base, in the dtype that the base is stored in.
        token_ids: At least one.
        preference: Weights by attribute.

    Raises:
        InvalidAdapter: The adapter has no effect on these tokens, or too little to be told from noise.
    """
    own = model.dtype
    stored = _forward(model, token_ids, preference, own)
    rows = {
        dtype: stored if torch.promote_types(own, dtype) == dtype else _forward(model, token_ids, preference, dtype)
        for dtype in _DTYPES.values()
    }
    top = stored[0].topk(min(_TOP_TOKENS, stored.shape[-1])).indices
    readings = {
        name: Reading(log_probs=arm[top].tolist(), base_log_probs=base[top].tolist())
        for name, dtype in _DTYPES.items()
        for arm, base in [rows[dtype]]
        if arm[top].isfinite().all() and base[top].isfinite().all()  # weights of bfloat16 may overflow in float16
    }
    if _NAMES[own] not in readings:
        raise _invalid("the adapter's log-probabilities are not finite")
    probe = Canary(
        token_ids=list(token_ids),
        preference=dict(preference),
        top_token_ids=top.tolist(),
        **dict(readings[_NAMES[own]]),
        dtype=_NAMES[own],
        readings=readings,
    )
    effect = _distance(*stored[:, top])
    if not effect >= LEAST_EFFECT:
        raise _invalid(
            f"the adapter has no effect worth serving: it moves its probe by {effect:.2g} nats, less than "
            f"{LEAST_EFFECT}; more steps or a higher learning rate give it more"
        )
    return probe


def check_probe(model: PeftModel, probe: Canary) -> None:
    """Repeat the recorded ``probe`` on a loaded adapter; raises as :func:`compare_probe` does."""
    check_probe_tokens(probe, model.config.vocab_size)
    arm, base = _forward(model, probe.token_ids, probe.preference, model.dtype)
    compare_probe(probe, arm, base, model.dtype)


def check_probe_tokens(probe: Canary, vocab_size: int) -> None:
    """Refuse a probe that can not be repeated.

    Raises:
        AdapterBaseMismatch: A token is not in the base's vocabulary.
        InvalidAdapter: The lists of tokens and log-probabilities differ in length.
    """
    if not all(0 <= token < vocab_size for token in (*probe.top_token_ids, *probe.token_ids)):
        raise AdapterBaseMismatch("the adapter's probe has tokens that the base does not have")
    lists = [probe.log_probs, probe.base_log_probs]
    for reading in probe.readings.values():
        lists += [reading.log_probs, reading.base_log_probs]
    if any(len(values) != len(probe.top_token_ids) for values in lists):
        raise _invalid("the adapter's probe has different numbers of tokens and log-probabilities")


def compare_probe(probe: Canary, arm: Tensor, base: Tensor, dtype: torch.dtype) -> None:
    """Compare log-probabilities after the probe's tokens with those recorded at training.

    The base must give the recorded ones, and the adapter's effect on them must be the recorded effect.

    Args:
        probe: The recorded probe.
        arm: Log-probabilities of the next token with the adapter on (V,), computed in float32.
        base: The same with the adapter off.
        dtype: The dtype of the base's weights.

    Raises:
        AdapterBaseMismatch: The base differs from training.
        InvalidAdapter: The adapter's effect differs from training.
    """
    arm, base = (row.cpu()[probe.top_token_ids] for row in (arm, base))
    reading = probe.readings.get(_NAMES[dtype])
    recorded, recorded_base = (
        torch.tensor(values, dtype=torch.float32)
        for values in ((reading or probe).log_probs, (reading or probe).base_log_probs)
    )
    effect = recorded - recorded_base
    drift_bound, error_bound = _bounds(probe, dtype, float(effect.abs().max()))
    drift = _distance(base, recorded_base)
    if not drift <= drift_bound:
        raise AdapterBaseMismatch(f"the base is {drift:.3g} nats away from the one that the adapter was trained on")
    error = _distance(arm - base, effect)
    if not error <= error_bound:
        raise _invalid(f"the adapter acts {error:.3g} nats differently than at training")


def _bounds(probe: Canary, dtype: torch.dtype, effect: float) -> tuple[float, float]:
    """Bounds on the base's drift and on the error of the effect, in nats."""
    if _NAMES[dtype] in probe.readings:
        return _BASE_DRIFT, _EFFECT_NOISE + _EFFECT_SHARE * effect
    tolerance = max(_OLDER_TOLERANCE[probe.dtype], _OLDER_TOLERANCE[_NAMES[dtype]])
    return tolerance, min(tolerance, effect / 2)


@torch.no_grad()
def _forward(model: PeftModel, token_ids: Sequence[int], preference: Mapping[str, float], dtype: torch.dtype) -> Tensor:
    """Compute log-probabilities with the adapter on and off (2, V), of weights rounded to ``dtype``."""
    weights = preference_vector(preference, model.active_peft_config.attributes)
    device = model.device
    was_training = model.training
    model.eval()
    gate = torch.tensor([True, False])
    with float32_forward(model, dtype), preferences(model, torch.tensor([weights, weights], device=device), gate):
        logits = model(input_ids=torch.tensor([list(token_ids)] * 2, device=device)).logits[:, -1]
    model.train(was_training)
    log_probs: Tensor = logits.float().log_softmax(-1).cpu()
    return log_probs


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def _invalid(reason: str) -> InvalidAdapter:
    return InvalidAdapter(reason, param=WEIGHTS)
