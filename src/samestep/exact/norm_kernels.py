"""A GPU's norm in one pass over the gradients: a program for each row, then the bins, then one number.

A row's square is summed in float64 by one program in an order that only its width decides. Addresses come from a table, so
that no kernel is compiled for one alignment and another for the next: both would add in their own order.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl

VERSION: str = triton.__version__
_BLOCK = 512  # numbers of a row, or rows of one number, that a program takes at once
_CHUNK = 1024  # rows whose squares a program puts into bins
_NUM_BINS = 2048
_UPPER_HALF = -(1 << 27)


@triton.jit(do_not_specialize=["num_tensors", "halvings"])
def _square_rows(addresses, tensors, squares, num_tensors, halvings, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    """`tensors`: of each its first program, width, rows, and place among the rows, int64 of shape (num_tensors, 4)."""
    program = tl.program_id(0).to(tl.int64)
    low, high = num_tensors * 0, num_tensors
    for _ in range(halvings):  # which tensor this program's row is of
        middle = (low + high) // 2
        is_behind = tl.load(tensors + 4 * middle) <= program
        low = tl.where(is_behind, middle, low)
        high = tl.where(is_behind, high, middle)
    entry = tensors + 4 * low
    number, width, rows, place = program - tl.load(entry), tl.load(entry + 1), tl.load(entry + 2), tl.load(entry + 3)
    values = tl.load(addresses + low).to(tl.pointer_type(DTYPE))
    offsets = tl.arange(0, BLOCK)
    if width == 1:
        here = number * BLOCK + offsets
        row = tl.load(values + here, mask=here < rows, other=0.0).to(tl.float64)
        tl.store(squares + place + here, row * row, mask=here < rows)
    else:
        total = tl.zeros([BLOCK], tl.float64)
        for start in range(0, width, BLOCK):
            here = start + offsets
            some = tl.load(values + number * width + here, mask=here < width, other=0.0).to(tl.float64)
            total += some * some
        tl.store(squares + place + number, tl.sum(total, 0))


@triton.jit(do_not_specialize=["num_rows"])
def _add_to_bins(squares, bins, num_rows, UPPER: tl.constexpr, BINS: tl.constexpr, CHUNK: tl.constexpr):
    """Sums of one bin are exact, so programs may add to it in any order: once for each exponent that one finds."""
    here = tl.program_id(0).to(tl.int64) * CHUNK + tl.arange(0, CHUNK)
    square = tl.load(squares + here, mask=here < num_rows, other=0.0)
    bits = square.to(tl.int64, bitcast=True)
    upper = (bits & UPPER).to(tl.float64, bitcast=True)
    lower = square - upper
    exponents = tl.where(square == 0.0, -1, (bits >> 52) & (BINS - 1))
    exponent = tl.max(exponents, 0)
    while exponent >= 0:
        is_here = exponents == exponent
        tl.atomic_add(bins + exponent, tl.sum(tl.where(is_here, upper, 0.0), 0))
        tl.atomic_add(bins + BINS + exponent, tl.sum(tl.where(is_here, lower, 0.0), 0))
        exponents = tl.where(is_here, -1, exponents)
        exponent = tl.max(exponents, 0)


@triton.jit
def _add_bins(bins, total, BINS: tl.constexpr):
    upper = tl.sum(tl.load(bins + tl.arange(0, BINS)), 0)
    lower = tl.sum(tl.load(bins + BINS + tl.arange(0, BINS)), 0)
    tl.store(total, tl.where(upper - upper == 0.0, upper + lower, upper))  # an infinity's lower half is NaN


_DTYPES: dict[torch.dtype, Any] = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}


def row_bins(grads: Sequence[torch.Tensor]) -> torch.Tensor:
    """What `norm.row_bins` gives, of gradients as rows: contiguous, of shape (rows, numbers), or (rows,) of one number each."""
    device = grads[0].device
    bins = torch.zeros(2, _NUM_BINS, dtype=torch.float64, device=device)
    for alike in _alike(grads):
        shapes = tuple((grad.shape[0], grad.shape[1] if grad.dim() > 1 else 1) for grad in alike)
        table, num_programs, num_rows = _table(shapes, device)
        addresses = _addresses(tuple(grad.data_ptr() for grad in alike), device)
        squares = torch.empty(num_rows, dtype=torch.float64, device=device)
        halvings = (len(alike) - 1).bit_length()
        dtype = _DTYPES[alike[0].dtype]
        _square_rows[(num_programs,)](addresses, table, squares, len(alike), halvings, DTYPE=dtype, BLOCK=_BLOCK, num_warps=4)
        programs = (triton.cdiv(num_rows, _CHUNK),)
        _add_to_bins[programs](squares, bins, num_rows, UPPER=_UPPER_HALF, BINS=_NUM_BINS, CHUNK=_CHUNK, num_warps=4)
    return bins


def norm_of(bins: torch.Tensor) -> torch.Tensor:
    """The root of all that is in the bins, float64 of shape (): nobody waits for it."""
    total = torch.empty((), dtype=torch.float64, device=bins.device)
    _add_bins[(1,)](bins, total, BINS=_NUM_BINS, num_warps=4)
    return total.sqrt_()


def _alike(grads: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    found: dict[torch.dtype, list[torch.Tensor]] = {}
    for grad in grads:
        if grad.numel():
            found.setdefault(grad.dtype, []).append(grad)
    yield from found.values()


@functools.lru_cache(maxsize=8)  # a model's gradients, and those of some of its parameters
def _table(shapes: tuple[tuple[int, int], ...], device: torch.device) -> tuple[torch.Tensor, int, int]:
    """What `_square_rows` reads of the tensors, its programs, and the rows."""
    entries, programs, place = [], 0, 0
    for rows, width in shapes:
        entries.append([programs, width, rows, place])
        programs += rows if width > 1 else triton.cdiv(rows, _BLOCK)
        place += rows
    return _on(device, entries), programs, place


@functools.lru_cache(maxsize=8)  # an allocator gives the same addresses in most steps
def _addresses(pointers: tuple[int, ...], device: torch.device) -> torch.Tensor:
    return _on(device, pointers)


def _on(device: torch.device, numbers: Sequence[Any]) -> torch.Tensor:
    host = torch.tensor(numbers, dtype=torch.int64, pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)
