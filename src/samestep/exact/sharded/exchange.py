"""How a block's parameters come together, and where its gradients go: in place of FSDP2's own all-gather and reduce-scatter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn

from samestep.errors import UsageError
from samestep.exact.route import Route
from samestep.exact.sharded.model import ShardedModel
from samestep.exact.sharded.scatter import NodeScatter, Pairs, scatter
from samestep.exact.totals import all_gather
from samestep.exact.transfer import transfer
from samestep.exact.tree import Sum


class Rounds(Protocol):
    """Where a step's sum stands: the leaves are dealt to the ranks in rounds.

    `route` is to those who have the same rows in other nodes, where there are any; `by_nodes` scatters over several nodes.
    """

    round: int
    last_round: int
    leaves: range  # of this node
    route: Route | None
    by_nodes: NodeScatter | None
    is_on_host: bool
    meeting: Callable[[], None]
    going_on: Callable[[], None]

    @property
    def looks_at_all(self) -> bool: ...


def _left_out(block: nn.Module) -> UsageError:
    """Only torch 2.13 can be asked to exchange zeros where no rank has a gradient: a tree without a leaf has another order."""
    return UsageError(
        f"shard: a micro-batch had no gradient for any of {type(block).__name__.removeprefix('FSDP')}, which needs torch 2.13; "
        "use each block in every micro-batch, or leave shard out"
    )


def _scattered(gradients: torch.Tensor, rounds: Rounds, group: dist.ProcessGroup) -> Pairs:
    """This rank's rows of a round's leaves, of which the last may have fewer than there are ranks."""
    first = rounds.round * len(gradients)
    leaves = rounds.leaves[first : first + len(gradients)]
    return scatter(gradients, leaves, group) if rounds.by_nodes is None else rounds.by_nodes(gradients, leaves)


def _give(rows: torch.Tensor, own: Sum[torch.Tensor], number: int, rounds: Rounds) -> None:
    """After a round: write zeros into `rows`, or block `number`'s whole sum, once this node's leaves are all in `own`."""
    if rounds.round < rounds.last_round:
        rows.zero_()
    elif rounds.route is None:
        rows.copy_(own.total())
    else:
        rounds.meeting()
        _meet_nodes(rounds.route, number, rows, own)
        rounds.going_on()


def _meet_nodes(route: Route, number: int, rows: torch.Tensor, own: Sum[torch.Tensor]) -> None:
    """Do the rest of the tree with those who have the same rows in other nodes."""

    def writer(values: torch.Tensor) -> Callable[[torch.Tensor], None]:
        return lambda whole: torch._foreach_copy_([whole], [values])

    *others, (_, last) = own.blocks
    own.blocks = []
    rows.copy_(last)
    for _ in transfer(route, number, rows, [writer(values) for _, values in others]):
        pass


def make_exchanges(rounds: Rounds, sharded: ShardedModel) -> tuple[type, type]:
    """The classes of a block's two exchanges, whose bases are there once FSDP2 is imported."""
    from torch.distributed.fsdp._fully_shard._fsdp_api import AllGather, ReduceScatter

    class Gathering(AllGather):
        def __init__(self, number: int) -> None:
            self.number = number

        def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
            return torch.empty(*size, dtype=dtype, device=device)

        def __call__(self, output_tensor: Any, input_tensor: Any, group: Any, async_op: bool = False) -> Any:
            rounds.meeting()
            if rounds.is_on_host or rounds.looks_at_all:  # on a GPU everybody waits for that
                sharded.refuse_other_mark(self.number)
            work = all_gather(output_tensor, input_tensor, group=group, async_op=async_op)
            rounds.going_on()
            return work

    class Folding(ReduceScatter):
        """Of one block: this rank's rows of the leaves so far, flat, as a partly summed tree."""

        def __init__(self, number: int, block: nn.Module) -> None:
            self.sum: Sum[torch.Tensor] = Sum(torch.Tensor.add_)
            self.number, self.block, self.round = number, block, -1  # the last that was added

        def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
            return torch.empty(*size, dtype=dtype, device=device)

        def __call__(self, output_tensor: Any, input_tensor: Any, group: Any, op: Any, async_op: bool = False) -> None:
            if self.round == rounds.round:
                raise UsageError(
                    f"shard: {type(self.block).__name__.removeprefix('FSDP')} runs twice in one micro-batch, and gives its "
                    "gradients each time; run each block once, or leave shard out"
                )
            if rounds.round != self.round + 1:
                raise _left_out(self.block)
            self.round = rounds.round
            rounds.meeting()
            if rounds.is_on_host or rounds.looks_at_all:
                sharded.refuse_other_mark(~self.number)
            arrived = _scattered(input_tensor.view(sharded.world_size, -1), rounds, group)
            rounds.going_on()
            for block, rows in arrived:
                self.sum.push(block, rows.clone())
            _give(output_tensor, self.sum, self.number, rounds)

        def begin_step(self) -> None:
            """Raise UsageError if the step before has ended without its last leaves."""
            if self.sum.blocks:
                raise _left_out(self.block)
            self.round = -1

    return Gathering, Folding
