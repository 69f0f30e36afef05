"""The share of a model's weights that a job selects, as an event and in what the job makes."""

from __future__ import annotations

from collections.abc import Iterable

from transformers import PreTrainedModel

from armature.modeling.layers import weight_share
from armature_worker.context.ports import RecipeContext


def report_share(context: RecipeContext, model: PreTrainedModel, names: Iterable[str]) -> float:
    """Log the share of the decoder's weights that the parameters ``names`` make up, and return it.

    A share below half is a warning: weights that are silently out of reach, such as the experts of a mixture, look like
    a method without effect.
    """
    share = weight_share(model, names)
    message = f"the job selects {share:.1%} of the decoder's weights"
    context.log(message, "warn" if round(share, 2) < _HALF else "info", {"selected_share": share})
    return share


_HALF = 0.5
