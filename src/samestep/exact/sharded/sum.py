"""The ordered sum over a sharded model: each rank adds up its own rows of every leaf's gradient, in the one fixed tree.

Leaves are dealt in rounds: in each, the ranks compute neighbouring ones, and whoever owns rows gets these of all of them and
pushes them into the tree in order. So at most log2(leaves) + 1 blocks of a shard's size are kept, and a leaf's sum does not
know which rank computed it. Where each node has a whole model, its ranks do that with the node's own leaves, and once they are
through, those who have the same rows in all nodes do the rest of the tree.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from samestep.errors import UsageError
from samestep.exact.gradients import OrderedSum, check_world_size
from samestep.exact.reentrant import refuse_reentrant
from samestep.exact.route import Route
from samestep.exact.sharded.exchange import make_exchanges
from samestep.exact.sharded.model import ShardedModel
from samestep.exact.sharded.scatter import NodeScatter
from samestep.exact.totals import as_bits, fingerprint
from samestep.exact.tree import cuts, dealt


class ShardedSum(OrderedSum):
    """`OrderedSum` for a sharded model: `parameters` are this rank's rows, and so are the gradients that `finish` returns.

    Args:
        micro_batches, leaves: as in `OrderedSum`.
        stepped: those of the shards' `local` parameters that the optimizer has.
    """

    is_sharded = True

    def __init__(self, sharded: ShardedModel, micro_batches: int, leaves: int, stepped: list[nn.Parameter]) -> None:
        check_world_size(sum(map(len, sharded.nodes)), leaves)
        wanted = set(stepped)
        self._sharded, self._shards = sharded, [shard for shard in sharded.shards if shard.local in wanted]
        self.parameters = [shard.local for shard in self._shards]
        self.num_leaves, self.leaf_size, self.world_size = leaves, micro_batches // leaves, sum(map(len, sharded.nodes))
        self.shares = dealt(leaves, self.leaf_size, sharded.nodes)
        self.share = self.shares[sharded.nodes[sharded.node][sharded.rank]]
        starts = cuts(leaves, len(sharded.nodes))
        self.leaves = range(starts[sharded.node], starts[sharded.node + 1])
        self.last_round = len(self.share) // self.leaf_size - 1
        self.by_nodes = NodeScatter(*sharded.levels) if sharded.levels is not None else None
        self.route = Route(leaves, sharded.node, len(sharded.nodes), sharded.across) if len(sharded.nodes) > 1 else None
        self.exchange = None
        self.watch_first = False
        device = self.parameters[0].device
        self.is_on_host = device.type == "cpu"
        self._prints = [torch.zeros((), dtype=torch.int64, device=device)] * len(self._shards)
        self.first_fingerprint = torch.stack(self._prints)
        self.loss = self.first_loss = torch.zeros(())
        self.meeting: Callable[[], None] = lambda: None
        self.going_on: Callable[[], None] = lambda: None
        self._used = [False] * len(self._shards)
        self._is_looked_through = False
        self._counts, self._looks = True, False
        self._stash: dict[int, torch.Tensor] = {}  # by place: what a leaf has before a micro-batch that does not count
        self._hooked: dict[int, nn.Parameter] = {}
        self._steps = 1
        self.round = -1  # apart from a step's own
        self._rounds = {index: number // self.leaf_size for number, index in enumerate(self.share)}
        self._syncs = False
        self._hook(sharded)
        for block in sharded.blocks:  # what is gathered into is made here, and not in a user's own inference mode, say
            module: Any = block
            module.unshard()
            module.reshard()

    def _hook(self, sharded: ShardedModel) -> None:
        """Have the gradients of each block come here in place of torch's reduce-scatter, and see which there are."""
        gathering, folding = make_exchanges(self, sharded)
        self._folds = []
        for number, block in enumerate(sharded.blocks):
            fold: Any = folding(number, block)
            module: Any = block
            module.set_custom_all_gather(gathering(number))
            module.set_custom_reduce_scatter(fold)
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
            if hasattr(module, "set_reduce_scatter_unused_params"):
                module.set_reduce_scatter_unused_params(True, recurse=False)
            block.register_forward_pre_hook(self._make_visit(number))
            self._folds.append(fold)

    def _make_visit(self, number: int) -> Callable[[nn.Module, Any], None]:
        """Before a block's forward its whole parameters are there: hear of their gradients."""
        places = {id(shard): place for place, shard in enumerate(self._shards)}
        own = {name: places[id(shard)] for name, shard in self._sharded.own[number].items() if id(shard) in places}

        def visit(module: nn.Module, args: Any) -> None:
            self._sharded.visited.append(number)
            for name, place in own.items():
                parameter = module.get_parameter(name)
                if parameter.requires_grad and self._hooked.get(place) is not parameter:
                    self._hooked[place] = parameter
                    parameter.register_post_accumulate_grad_hook(lambda found, place=place: self._arrived(place, found))

        return visit

    def _arrived(self, place: int, parameter: torch.Tensor) -> None:
        """A whole gradient of this rank's micro-batch has been added to `parameter.grad`."""
        if self._looks and parameter.grad is not None:
            self._prints[place] = as_bits(parameter.grad).sum(dtype=torch.int64)
        if self._counts:
            self._used[place] = True
        elif place in self._stash:
            parameter.grad = self._stash[place]
        else:  # zeros where the leaf ends, for which older torch does not ask by itself
            parameter.grad = parameter.grad.zero_() if self._syncs and parameter.grad is not None else None

    @property
    def looks_at_all(self) -> bool:
        """Whether, as in the first step and in ever rarer ones, no rank may wait for another that is somewhere else."""
        return self._steps & (self._steps - 1) == 0

    def begin_micro_batch(self, index: int) -> None:
        self.round = self._rounds[index]
        self._sync(index % self.leaf_size == self.leaf_size - 1)

    def _sync(self, wanted: bool) -> None:
        self._syncs = wanted
        model: Any = self._sharded.model
        model.set_requires_gradient_sync(wanted)

    def connect(self, loss: torch.Tensor, counts: bool = True) -> torch.Tensor:
        """The loss: where it does not count, its backward runs too, for others wait in it, and its gradients are dropped."""
        if not self._is_looked_through:
            refuse_reentrant(loss)
            self._is_looked_through = True
        self.loss = loss.detach()
        self._begin(counts, looks=self.watch_first and counts)
        return loss

    def _begin(self, counts: bool, looks: bool) -> None:
        self._counts, self._looks, self._stash = counts, looks, {}
        if self.watch_first or looks:
            self._prints = [torch.zeros_like(self._prints[0])] * len(self._shards)
        if not counts:  # what the leaf has stands where nothing arrives
            self._stash = {place: p.grad.clone() for place, p in self._hooked.items() if p.grad is not None}

    def end_micro_batch(self, index: int) -> None:
        if self.watch_first and index == self.share[0]:
            self.first_loss, self.first_fingerprint = self.loss, self.prints()
        self._looks = False
        if self.looks_at_all and any(parameter.grad is not None for parameter in self._sharded.left_behind):
            raise UsageError(
                "shard: the forward computes with parameters that it keeps in a list, say; take them from the modules that "
                "have them, or leave shard out"
            )
        self.meeting()
        self._sharded.refuse_another_way()
        self.going_on()
        if index != self.share[-1]:
            for shard in self._sharded.shards:
                shard.whole.grad = None

    @contextlib.contextmanager
    def micro_batch(self, index: int) -> Iterator[None]:
        self.begin_micro_batch(index)
        yield
        self.end_micro_batch(index)

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """A forward and backward inside, on every rank at once, are nobody's: their gradients go nowhere."""
        prints = self._prints  # of the micro-batch that may be looked at again in here
        self._sync(False)
        self._begin(counts=False, looks=True)
        try:
            with self._sharded.apart():
                yield
                self.meeting()
            self.going_on()
        finally:
            self._looks, self._counts, self._prints, self._stash = False, True, prints, {}
            self._sharded.reshard()

    def finish(self, used: list[bool] | None = None) -> list[torch.Tensor]:
        """End the step: every used shard's `local.grad` holds its rows of the sum. Returns those gradients."""
        assert used is not None
        self._steps += 1
        grads = []
        for shard, is_used in zip(self._shards, used, strict=True):
            found: Any = shard.whole.grad
            if is_used and found is None:  # only torch 2.13 can be asked for zeros where a rank has no gradient
                raise UsageError(
                    f"shard: {shard.names[0]} is used by some micro-batches alone, which needs torch 2.13; use all of a block "
                    "in each, or leave shard out"
                )
            shard.local.grad = None
            if is_used:
                rows: torch.Tensor = found.to_local()
                shard.local.grad = rows.clone() if rows.is_cuda and rows.storage_offset() else rows  # kernels look at alignment
                grads.append(shard.local.grad)
        for shard in self._sharded.shards:
            shard.whole.grad = None
        for fold in self._folds:
            fold.begin_step()
        if self.route is not None:
            self.route.begin_step()
        self._used = [False] * len(self._shards)
        return grads

    def fingerprints(self, grads: list[torch.Tensor]) -> torch.Tensor:
        return self.combine(fingerprint(grads))

    def combine(self, parts: torch.Tensor) -> torch.Tensor:
        """Sum integers, or floats that stand for some, over the ranks: in any order to the same."""
        self.meeting()
        dist.all_reduce(parts, group=self._sharded.group)
        return parts

    def prints(self) -> torch.Tensor:
        return torch.stack(self._prints)

    def clear(self) -> None:
        for shard in self._sharded.shards:
            shard.whole.grad = shard.local.grad = None
