"""A mean as people think of it, as the pair that the step's loss is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from samestep.errors import UsageError

if TYPE_CHECKING:
    import torch


def mean(losses: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor | float]:
    """What `loss` and `metrics` return for a mean: the sum of unreduced losses, and how many of them count.

    `return samestep.mean(F.cross_entropy(scores, labels, reduction="none"))`: the step's loss is the mean over the whole
    global batch, however unevenly what counts falls on micro-batches.

    Args:
        losses: one for each row or token, of any shape; not reduced.
        mask: of the same shape, true where a loss counts, or its weight; what it leaves out may be NaN. By default all count.

    Raises UsageError for a loss that is reduced already, and for a mask of another shape.
    """
    if losses.ndim == 0:
        raise UsageError(
            "samestep.mean: found a loss that is reduced already; write reduction='none', a loss for each row or token"
        )
    if mask is None:
        return losses.sum(), losses.numel()
    if mask.shape != losses.shape:
        found = f"a mask of shape {tuple(mask.shape)} for losses of shape {tuple(losses.shape)}"
        raise UsageError(f"samestep.mean: found {found}; write one of the same shape")
    return (losses.where(mask != 0, 0.0) * mask).sum(), mask.sum()
