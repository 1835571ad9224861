"""Small numbers over all ranks: gathered as bytes, then summed by everyone in the same tree."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.distributed as dist

from samestep.exact.tree import cuts, tree_sum

# Newer torch has renamed it, and warns of the old name.
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def gather(local: torch.Tensor) -> torch.Tensor:
    """Every rank's tensor, stacked in rank order: (…) to (world_size, …). All ranks pass the same shape and dtype.

    On a GPU floats begin as NaN: after an aborted collective the queued kernels still run, and must see that nothing arrived.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return local[None]
    shape = (dist.get_world_size(), *local.shape)
    nothing = math.nan if local.is_floating_point() else 0
    everyone = local.new_full(shape, nothing) if local.is_cuda else local.new_empty(shape)
    all_gather(everyone.view(-1), local.reshape(-1))
    return everyone


def padded(local: torch.Tensor, most: int) -> torch.Tensor:
    """A rank's share of rows, with zero rows up to the largest share's number."""
    if len(local) == most:
        return local
    return torch.cat([local, local.new_zeros(most - len(local), *local.shape[1:])])


def in_order(gathered: torch.Tensor, starts: list[int]) -> torch.Tensor:
    """Undo the padding after `gather`: (world_size, most, …) to (rows, …), in the rows' order."""
    if len(gathered) == 1:
        return gathered[0]
    shares = zip(gathered, itertools.pairwise(starts), strict=True)
    return torch.cat([rows[: stop - start] for rows, (start, stop) in shares])


def ordered_total(local: torch.Tensor, num_rows: int) -> torch.Tensor:
    """The tree's sum over `num_rows` rows, of which each rank passes its contiguous share (see `tree.cuts`)."""
    starts = cuts(num_rows, dist.get_world_size() if dist.is_initialized() else 1)
    most = max(stop - start for start, stop in itertools.pairwise(starts))
    return tree_sum(in_order(gather(padded(local, most)), starts))


def fingerprint(tensors: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """For each tensor the integer sum over its bits, modulo 2**64: (len(tensors),) of int64; 0 where there is none.

    Integers add up to the same in any order, so this is cheap and needs no care; one flipped bit always changes it.
    """
    if not tensors:
        return torch.zeros(0, dtype=torch.int64)
    sums = [as_bits(tensor).sum(dtype=torch.int64) if tensor is not None else None for tensor in tensors]
    device = next((tensor.device for tensor in tensors if tensor is not None), None)
    return torch.stack([total if total is not None else torch.zeros((), dtype=torch.int64, device=device) for total in sums])


def as_bits(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's bits as integers of the same size."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])
