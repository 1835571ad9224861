"""The norm of a step's gradients, which no cut of them into ranges of rows can change.

A row is a slice of a gradient along its first dimension; each number of a vector is one. Its norm is taken by a kernel that
never looks at the rows beside it. Their squares are added without any rounding, so that no order matters:

    norm = √ Σ (norm of a row)²     over all rows of all gradients, the squares in float64, their sum rounded once

Where there are many rows, or each rank has some, a square goes into the bin of its exponent, as two halves: all that is in one
are multiples of one power of two, whose sum is exact. On a GPU Triton's kernels do that in one pass over the gradients.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
import os
from collections.abc import Callable, Iterator
from types import ModuleType

import torch

from samestep.exact.buckets import as_real
from samestep.exact.scalars import Scalar

_FEW_ROWS = 1024  # up to here adding them one by one costs less than bins do
_MOST_ROWS, _MOST_NUMBERS = 2**20, 2**24  # taken at once, which bounds the memory
_SPLIT = 32768  # numbers from which torch splits a single row among threads in some releases
_OF_16_BITS = (torch.float16, torch.bfloat16)
_NUM_BINS = 2048  # one for each exponent of a float64
_UPPER_HALF = -(1 << 27)  # sign, exponent and the first 25 bits of a fraction of 52


def total_norm(grads: list[torch.Tensor], reduce: Callable[[torch.Tensor], torch.Tensor] | None = None) -> Scalar:
    """The norm of all gradients; inf or NaN where one is not finite, or a square is beyond float64.

    Args:
        grads: at least one, all on one device.
        reduce: sums `row_bins` over the ranks, each of which has some of the rows. By default all rows are here.
    """
    if reduce is None and _on_host(grads[0]) and sum([grad.shape[0] if grad.dim() else 1 for grad in grads]) <= _FEW_ROWS:
        return _root([norm * norm for grad in grads for norm in _norms_of(grad)])
    bins = row_bins(grads)
    return norm_of(bins if reduce is None else reduce(bins))


def row_bins(grads: list[torch.Tensor]) -> torch.Tensor:
    """The squares of these gradients' row norms by their exponents, float64 of shape (2, 2048): upper halves, and lower.

    A sum of such bins is exact in whatever order it is taken, with up to 2^26 rows of like norms.
    """
    if not _on_host(grads[0]) and (kernels := _kernels()) is not None:
        bins: torch.Tensor = kernels.row_bins([_as_rows(grad) for grad in grads])
        return bins
    bins = torch.zeros(2, _NUM_BINS, dtype=torch.float64, device=grads[0].device)
    taken: list[torch.Tensor] = []
    num_rows = 0
    for norms in _row_norms(grads):
        taken.append(norms)
        num_rows += len(norms)
        if num_rows >= _MOST_ROWS:
            _add(bins, taken)
            taken, num_rows = [], 0
    if taken:
        _add(bins, taken)
    return bins


def norm_of(bins: torch.Tensor) -> Scalar:
    """The root of all that is in the bins. On a GPU they are summed there, in a fixed order, and nobody waits."""
    if not _on_host(bins):
        if (kernels := _kernels()) is not None:
            norm: torch.Tensor = kernels.norm_of(bins)
            return norm
        upper = bins[0].sum()
        return torch.where(upper - upper == 0, upper + bins[1].sum(), upper).sqrt()  # an infinity's lower half is NaN
    root = _root(bins[bins != 0].tolist())
    return _root(bins[0].tolist()) if math.isnan(root) else root


def norm_way() -> str:
    """How a GPU here takes a norm, whose last bits hang on it."""
    kernels = _kernels()
    return "by halves" if kernels is None else f"in one pass, Triton {kernels.VERSION}"


@functools.cache
def _kernels() -> ModuleType | None:
    """Triton's, where they run: it wants a GPU, or its interpreter, and a C compiler."""
    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if not (is_interpreted or torch.cuda.is_available()):
        return None
    try:
        kernels = importlib.import_module("samestep.exact.norm_kernels")
        row = torch.tensor([[3.0, 4.0]], device="cpu" if is_interpreted else "cuda")
        return kernels if kernels.norm_of(kernels.row_bins([row])).item() == 5.0 else None
    except Exception:  # no Triton here, or whatever its compiler finds fault with: the norm is there without it
        return None


def _on_host(tensor: torch.Tensor) -> bool:
    return not tensor.is_cuda


def _root(squares: list[float]) -> float:
    try:
        return math.sqrt(math.fsum(squares))
    except OverflowError:  # of finite numbers, whose sum is not
        return math.inf


def _row_norms(grads: list[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The norms of some rows at a time, up to their signs."""
    waiting: dict[tuple[int, torch.dtype], list[torch.Tensor]] = {}
    for rows in _rows(grads):
        if rows.dim() == 1:
            yield rows
        elif _on_host(rows):
            yield _by_kernel(rows)
        else:  # many in one kernel
            alike = waiting.setdefault((rows.shape[1], rows.dtype), [])
            alike.append(rows)
            if sum(some.numel() for some in alike) >= _MOST_NUMBERS:
                yield _by_halves(alike)
                alike.clear()
    for alike in waiting.values():
        if alike:
            yield _by_halves(alike)


def _rows(grads: list[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Some rows at a time, of shape (rows, numbers), or (rows) of one number each; of 16 bits in float32."""
    for grad in grads:
        if not grad.numel():
            continue
        rows = _as_rows(grad)
        most = max(1, min(_MOST_ROWS, _MOST_NUMBERS * rows.shape[0] // rows.numel()))
        for some in rows.split(most) if rows.shape[0] > most else (rows,):
            yield some.float() if some.dtype in _OF_16_BITS else some


def _as_rows(grad: torch.Tensor) -> torch.Tensor:
    real = as_real(grad if grad.dim() else grad.reshape(1))
    return (real.flatten() if real.numel() == real.shape[0] else real.flatten(1)).contiguous()


def _norms_of(grad: torch.Tensor) -> list[float]:
    """The same for one gradient of few rows on a CPU, at less cost."""
    if not grad.numel():
        return []
    rows = _as_rows(grad)
    if rows.dtype in _OF_16_BITS:
        rows = rows.float()
    norms: list[float] = (rows if rows.dim() == 1 else _by_kernel(rows)).tolist()
    return norms


def _by_kernel(rows: torch.Tensor) -> torch.Tensor:
    """The CPU's own norm, which gives a row the same bits beside any others; one alone may be split among threads."""
    is_split = rows.shape[0] == 1 and rows.shape[1] >= _SPLIT
    norms: torch.Tensor = torch.linalg.vector_norm(rows.expand(2, -1) if is_split else rows, dim=1)
    return norms[:1] if is_split else norms


def _by_halves(alike: list[torch.Tensor]) -> torch.Tensor:
    """For GPUs, whose kernels take a row in a way that depends on how many there are: its halves are added, and theirs."""
    squares = torch.cat(alike).square_()
    width = squares.shape[1]
    while width > 1:
        half = width // 2
        squares[:, :half].add_(squares[:, width - half : width])
        width -= half
    return squares[:, 0].sqrt()


def _add(bins: torch.Tensor, norms: list[torch.Tensor]) -> None:
    squares = torch.cat(norms).to(torch.float64).square_()
    bits = squares.view(torch.int64)
    exponents = (bits >> 52) & (_NUM_BINS - 1)
    upper = (bits & _UPPER_HALF).view(torch.float64)
    with _in_any_order():
        bins[0].index_add_(0, exponents, upper)
        bins[1].index_add_(0, exponents, squares - upper)


@contextlib.contextmanager
def _in_any_order() -> Iterator[None]:
    """Inside, sums are exact, so a GPU may add with atomics: its ordered way takes the rows of a bin one after the other."""
    was, only_warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch._C._set_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch._C._set_deterministic_algorithms(was, warn_only=only_warns)
