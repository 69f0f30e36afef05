"""Lower bounds of a decoding step: its products with the weights, and nothing else.

At the machine's peak a product of m rows with a weight of n numbers takes at least ``max(2 m n / flops, n bytes /
bandwidth)``. Both limits are measured with the product that the lean back end uses, so a ratio to them is a ratio to
rates that this machine has reached. The real time of a step's products, one after the other, can be measured too.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from transformers import LlamaForCausalLM

from armature.inference.lean.linears import Linear, make_linear
from armature.inference.lean.weights import LeanWeights

_PEAKS = {"cpu": (2048, 64), "cuda": (16384, 4096)}
"""Width and rows of the products that reach the peak: large enough to hide the cost of a call."""
_STREAMED_BYTES = 1 << 28
"""More bytes than a processor's cache holds."""
_TRIES = 16

Pieces = Sequence[tuple[int, int]]
"""A step's products as (number of weights, number of rows)."""


@dataclass(frozen=True)
class Limits:
    """The best measured rates for one dtype on one device."""

    flops: float
    """Operations per second in a product of many rows."""
    bandwidth: float
    """Bytes of weights per second in products of one row."""
    itemsize: int

    def floor(self, pieces: Pieces) -> float:
        """Lower bound of a step in seconds."""
        return sum(
            max(2 * rows * weights / self.flops, weights * self.itemsize / self.bandwidth) for weights, rows in pieces
        )


def measure_limits(device: str, dtype: torch.dtype) -> Limits:
    """Measure the rates as the best of a few tries: other work on the machine only ever slows a try."""
    width, most = _PEAKS[device]

    def weight() -> torch.Tensor:
        return torch.randn(width, width, device=device, dtype=dtype)

    products = [make_linear(weight()) for _ in range(max(1, _STREAMED_BYTES // (width**2 * dtype.itemsize)))]
    many, one = (torch.randn(rows, width, device=device, dtype=dtype) for rows in (most, 1))
    return Limits(
        flops=2 * most * width**2 / _best(products[:1], many, device),
        bandwidth=width**2 * dtype.itemsize / _best(products, one, device),
        itemsize=dtype.itemsize,
    )


class StepRows(NamedTuple):
    """Rows that a step multiplies in each part of the model."""

    lower: int
    """Rows in the lower half of the layers."""
    upper: int
    head: int


def step_rows(batch: int) -> Mapping[str, StepRows]:
    """Count the rows of a step of the lean back end, by contender.

    The late split runs the lower half on the safe rows alone. The streams are combined before the head, except inside
    a safe set, which needs the logits of each.
    """
    return {
        "plain": StepRows(batch, batch, batch),
        "twin": StepRows(2 * batch, 2 * batch, batch),
        "late_split": StepRows(batch, 2 * batch, batch),
        "guarded": StepRows(2 * batch, 2 * batch, 2 * batch),
    }


def step_pieces(model: LlamaForCausalLM, rows: StepRows) -> Pieces:
    """List the products of one step, without those of adapters."""
    layers = sum(parameter.numel() for parameter in model.model.layers.parameters())
    lower, head = layers // 2, model.lm_head.weight.numel()
    return list(zip((lower, layers - lower, head), rows, strict=True))


@torch.inference_mode()
def product_steps(base: LeanWeights, rows: StepRows, steps: int) -> list[float]:
    """Run the products of ``steps`` steps, without adapters; return the seconds of each step."""
    split, hidden = len(base.layers) // 2, base.config.hidden_size
    widths = hidden, base.architecture.heads * base.architecture.head_width, hidden, base.config.intermediate_size
    lower, upper = ([base.embeddings.new_ones(count, 1, width) for width in widths] for count in rows[:2])
    last, seconds = base.embeddings.new_ones(rows.head, hidden), []
    for _ in range(steps):
        started = time.perf_counter()
        for number, layer in enumerate(base.layers):
            for product, x in zip(layer.products, lower if number < split else upper, strict=True):
                product(x)
        base.head(last)
        if last.is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return seconds


@torch.inference_mode()
def _best(products: Sequence[Linear], x: torch.Tensor, device: str) -> float:
    """Seconds of the fastest single product, in rotation: many weights then come from memory."""
    seconds = []
    for product in list(products) * _TRIES:
        started = time.perf_counter()
        product(x)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
