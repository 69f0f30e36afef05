"""Adding an attribute to a trained adapter: one new row of W2 per layer, and nothing else, is trained.

Paper: ours, on PARM's parameterisation (arXiv 2505.06274); symbols as in
:mod:`armature.algorithms.conditioned_lora`, whose cores and shifts are linear in ``p W2``. With the new attribute's
weight q::

    p W2 + q w        in the place of p W2;  w: the new row, zero at first

so at q = 0 the adapter is the old one, whatever w became: the sum has one more term, which is 0.
"""

from __future__ import annotations

import torch

from armature.algorithms.conditioned_lora import AdapterWeights


def append_row(weights: AdapterWeights) -> AdapterWeights:
    """The adapter with one more attribute, which does nothing yet."""
    return weights._replace(w2=torch.cat([weights.w2, torch.zeros_like(weights.w2[:1])]))


def keep_last_row(gradients: AdapterWeights) -> AdapterWeights:
    """The gradients with zeros everywhere but in W2's last row; AdamW without weight decay then moves nothing else."""
    w2 = torch.zeros_like(gradients.w2)
    w2[-1] = gradients.w2[-1]
    a, b, w1 = (torch.zeros_like(gradient) for gradient in gradients[:3])
    return AdapterWeights(a, b, w1, w2)
