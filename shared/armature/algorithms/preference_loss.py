"""The ARM's loss: one pairwise logistic loss per attribute, weighted by each row's preference.

Papers: ProSocialAlign (arXiv 2512.06515, Eq. 4 and 3.3.1), GenARM (2410.08193), PARM (2505.06274)::

    r(x, y; p) = sum_t log pi_r(y_t | x, y_<t; p)                     form ``sum``
               = the same divided by the answer's tokens              form ``mean``
               = the same minus sum_t log pi_0(y_t | x, y_<t)         form ``reference``, pi_0 with the adapter off
    m          = r(x, y_0; p) - r(x, y_1; p)                          the pair's margin
    l_k        = K p_k * -log sigma(beta_k s_k m)                     s_k = +1: y_0 is better, -1: y_1, 0: tie, l_k = 0
    l_mix      = -log sigma(beta v m)             v = sum_k p_k s_k   the preference's own verdict; v = 0: l_mix = 0

Symbols: N pairs, rows 2N with rows 2i and 2i + 1 holding pair i's answers; T tokens; V vocabulary; K attributes.

The mixture's loss is named, not given, by UniARM's abstract (arXiv 2602.09538); this form is ours.

What differs from the papers: a preference per row instead of one per step, the weight K p_k (1 at the centroid, so the
loss keeps its scale), ties masked instead of counted as a win, and the loss form stored with the adapter, because the
decoder must use the same one (docs/traps.md, 11).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

FORMS = ("reference", "sum", "mean")

_ANSWERS_PER_PAIR = 2


def sequence_log_probs(logits: Tensor, token_ids: Tensor, answer_mask: Tensor) -> Tensor:
    """Sum of the answer tokens' log-probabilities per row, in float32.

    Args:
        logits: (rows, T, V), any float dtype.
        token_ids: (rows, T); the token at t is predicted by the logits at t - 1.
        answer_mask: (rows, T) bool: which tokens belong to the answer, its end-of-sequence token included.

    Returns:
        (rows,)
    """
    chosen = token_log_probs(logits[:, :-1], token_ids[:, 1:])
    return chosen.masked_fill(~answer_mask[:, 1:], 0.0).sum(-1)


def token_log_probs(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of each target, in float32.

    Args:
        logits: (..., V), any float dtype; cast first: in bfloat16 a log-softmax is off by hundredths of a nat.
        targets: (...).

    Returns:
        (...)
    """
    logits = logits.float()
    return logits.gather(-1, targets[..., None])[..., 0] - logits.logsumexp(-1)


def compute_rewards(log_probs: Tensor, answer_tokens: Tensor, form: str, reference: Tensor | None = None) -> Tensor:
    """``r`` per row in the given form.

    Args:
        log_probs: (rows,) from :func:`sequence_log_probs`.
        answer_tokens: (rows,) how many tokens each answer has.
        form: One of :data:`FORMS`.
        reference: (rows,) the same log-probabilities with the adapter off; the reference form needs them.

    Raises:
        ValueError: An unknown form, or the reference form without a reference.
    """
    if form not in FORMS:
        raise ValueError(f"unknown loss form {form!r}; known are {', '.join(FORMS)}")
    if form == "mean":
        return log_probs / answer_tokens.clamp(min=1)
    if form == "sum":
        return log_probs
    if reference is None:
        raise ValueError("the reference form needs the log-probabilities with the adapter off")
    return log_probs - reference


def pair_margins(rewards: Tensor) -> Tensor:
    """``m_i = r(first answer) - r(second answer)``: (2N,) -> (N,)."""
    first, second = rewards.view(-1, _ANSWERS_PER_PAIR).unbind(1)
    return first - second


def attribute_losses(margins: Tensor, labels: Tensor, preferences: Tensor, betas: Tensor) -> Tensor:
    """``K p_k * -log sigma(beta_k s_k m)`` for every pair and attribute; 0 where the label is a tie.

    Divide the sum over pairs by the number of pairs in the optimiser step, ties included, so that micro-batches add up.

    Args:
        margins: (N,).
        labels: (N, K) in {+1, -1, 0}.
        preferences: (N, K), the preference that both rows of the pair ran under.
        betas: (K,).

    Returns:
        (N, K)
    """
    loss = softplus(-betas * labels * margins[:, None])
    return (labels != 0) * labels.shape[1] * preferences * loss


def mixture_losses(margins: Tensor, labels: Tensor, preferences: Tensor, beta: float) -> Tensor:
    """``-log sigma(beta v m)`` for every pair, ``v = sum_k p_k s_k``; 0 where the attributes' labels cancel out.

    Args:
        margins: (N,).
        labels: (N, K) in {+1, -1, 0}.
        preferences: (N, K), the preference that both rows of the pair ran under.
        beta: As of the attributes' losses.

    Returns:
        (N,)
    """
    verdict = (preferences * labels).sum(-1)
    return (verdict != 0) * softplus(-beta * verdict * margins)


def sample_preferences(
    count: int, attributes: int, vertices: float, centroid: float, concentration: float, generator: torch.Generator
) -> Tensor:
    """Preferences for training: shares of vertices and centroid, symmetric Dirichlet for the rest (docs/traps.md, 9).

    Args:
        count: How many.
        attributes: K.
        vertices: Probability of a one-hot preference, each attribute alike.
        centroid: Probability of the uniform preference.
        concentration: Of the Dirichlet distribution.
        generator: On the CPU.

    Returns:
        (count, K) float32, each row summing to 1.
    """
    kind = torch.rand(count, 1, generator=generator, dtype=torch.float64)
    corners = torch.eye(attributes, dtype=torch.float64)[torch.randint(attributes, (count,), generator=generator)]
    centre = torch.full((1, attributes), 1 / attributes, dtype=torch.float64)
    mixed = _draw_dirichlet(count, attributes, concentration, generator, corners)
    drawn = torch.where(kind < vertices, corners, torch.where(kind < vertices + centroid, centre, mixed))
    return drawn.float()


def preference_grid(attributes: int, count: int, seed: int, concentration: float = 0.5) -> Tensor:
    """A fixed set of preferences to evaluate at: the K vertices, the centroid, then Dirichlet draws; cut at ``count``.

    Returns:
        (count, K) float32; the same for the same arguments.
    """
    generator = torch.Generator().manual_seed(seed)
    corners = torch.eye(attributes, dtype=torch.float64)
    centre = torch.full((1, attributes), 1 / attributes, dtype=torch.float64)
    fallback = corners[torch.randint(attributes, (count,), generator=generator)]
    drawn = _draw_dirichlet(count, attributes, concentration, generator, fallback)
    return torch.cat([corners, centre, drawn])[:count].float()


def _draw_dirichlet(
    count: int, attributes: int, concentration: float, generator: torch.Generator, fallback: Tensor
) -> Tensor:
    """Rows from the symmetric Dirichlet. A tiny concentration underflows; its limit is a vertex, the fallback."""
    parameters = torch.full((count, attributes), concentration, dtype=torch.float64)
    drawn = torch._sample_dirichlet(parameters, generator=generator)  # torch.distributions takes no generator
    usable = torch.isfinite(drawn).all(-1, keepdim=True) & ((drawn.sum(-1, keepdim=True) - 1).abs() < 1e-6)
    return torch.where(usable, drawn, fallback)
