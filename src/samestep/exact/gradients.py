"""The ordered sum of a step's gradients: a local fold over this rank's leaves, and buckets for the rest of the tree."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from samestep.errors import UsageError
from samestep.exact.buckets import Bucket, BucketExchange, Grads, as_real
from samestep.exact.reentrant import refuse_reentrant
from samestep.exact.route import Route
from samestep.exact.totals import fingerprint
from samestep.exact.transfer import all_reduce, transfer
from samestep.exact.tree import Block, Sum, contiguous


def _add(left: Grads, right: Grads) -> Grads:
    """left + right into left; a missing gradient is a real zero at every world size, so it is added as one."""
    both = [(a, b) for a, b in zip(left, right, strict=True) if a is not None and b is not None]
    if both:
        torch._foreach_add_([a for a, _ in both], [b for _, b in both])
    if len(both) == len(left):
        return left
    alone = [a for a, b in zip(left, right, strict=True) if a is not None and b is None]
    alone += [b for a, b in zip(left, right, strict=True) if a is None and b is not None]
    if alone:
        torch._foreach_add_(alone, 0.0)  # turns -0 into 0, as adding a zero leaf does
    return [a if a is not None else b for a, b in zip(left, right, strict=True)]


class OrderedSum:
    """Sums the gradients of a step's micro-batches in one fixed tree, the same bits at every world size.

    In anyone's own loop, on one process or many:

        ordered = OrderedSum(model, micro_batches=8, group=everyone())
        for v in ordered.share:                             # this rank's of the 8
            with ordered.micro_batch(v):
                ordered.backward(loss(model, v))            # a SUM; divide `p.grad` by the step's weight afterwards
        ordered.finish()                                    # every p.grad holds the sum over all 8

    Args:
        model: on its device, with the same weights on every rank. DDP around one may be given too, made with
            `broadcast_buffers=False`: its group is taken, and its own reduction never runs.
        micro_batches: V, of one step over all ranks.
        leaves: M, a divisor of V; V / M micro-batches are added in order into one leaf. The world size goes up to M, and
            the copies of the gradients kept are at most ceil(log2(M / W)) + 1. Default: V.
        group: the ranks that share a step; by default DDP's, or this process alone.
        stepped: the parameters whose gradients are summed, those that the optimizer has; by default all of the model's.
            Whether one needs a gradient may change between steps.

    Raises UsageError if the world size is larger than M.
    """

    is_sharded = False  # whether no rank runs a forward alone
    combine: Callable[[torch.Tensor], torch.Tensor] | None = None  # sums what each rank has of the gradients' norm
    _send = staticmethod(transfer)

    def __init__(
        self,
        model: torch.nn.Module,
        micro_batches: int,
        leaves: int | None = None,
        group: dist.ProcessGroup | None = None,
        stepped: Iterable[torch.nn.Parameter] | None = None,
    ) -> None:
        self._ddp = model if isinstance(model, DistributedDataParallel) else None
        if self._ddp is not None:
            group = group or self._ddp.process_group
            if self._ddp.broadcast_buffers or self._ddp.static_graph or self._ddp.gradient_as_bucket_view:
                raise UsageError(
                    "exact: found DDP with broadcast_buffers, static_graph or gradient_as_bucket_view; write False for each"
                )
        self.num_leaves = leaves or micro_batches
        self.leaf_size = micro_batches // self.num_leaves
        self._group = group
        rank = dist.get_rank(group) if group is not None else 0
        self.world_size = dist.get_world_size(group) if group is not None else 1
        check_world_size(self.world_size, self.num_leaves)
        self.shares: Sequence[Sequence[int]] = contiguous(self.num_leaves, self.leaf_size, self.world_size)
        self.share: Sequence[int] = self.shares[rank]
        wanted = None if stepped is None else set(stepped)
        self.parameters = [p for p in model.parameters() if (p.requires_grad if wanted is None else p in wanted)]
        self._others = [p for p in model.parameters() if wanted is not None and p not in wanted]
        self._kept: Sum[Grads] = Sum(_add)
        self._used = [False] * len(self.parameters)
        self._is_looked_through = self._is_last = False
        self.watch_first = False  # keep a fingerprint of the share's first micro-batch, for the audit
        self.first_fingerprint = torch.zeros(len(self.parameters), dtype=torch.int64, device=self.parameters[0].device)
        self.loss = self.first_loss = torch.zeros(())  # of the latest micro-batch, and of the first under `watch_first`
        self._last_leaf = Block(self.share[-1] // self.leaf_size, 0)
        self.exchange: BucketExchange | None = None
        if group is not None:
            route = Route(self.num_leaves, rank, self.world_size, group)
            self.exchange = BucketExchange(self.parameters, route, self._fold_last_leaf, self._send)

    @contextlib.contextmanager
    def micro_batch(self, index: int) -> Iterator[None]:
        """Forward and backward of micro-batch `index` belong inside; the last of the share meets the other ranks."""
        self.begin_micro_batch(index)
        with self.apart():
            yield
        self.end_micro_batch(index)

    def begin_micro_batch(self, index: int) -> None:
        """What `micro_batch` does first, for a model without DDP around it."""
        self._is_last = self.exchange is not None and index == self.share[-1]

    def end_micro_batch(self, index: int) -> None:
        if self.watch_first and index == self.share[0]:
            self.first_loss = self.loss
            self.first_fingerprint = self.prints()
        if self._is_last and self.exchange is not None:
            self.exchange.drain()
            self._is_last = False
        elif (index + 1) % self.leaf_size == 0:
            self._keep_leaf(Block(index // self.leaf_size, 0))

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """A forward and backward inside are this process's own: nothing is summed and nobody is met."""
        with self._ddp.no_sync() if self._ddp is not None else contextlib.nullcontext():
            yield

    def connect(self, loss: torch.Tensor, counts: bool = True) -> torch.Tensor:
        """What to call backward on: the loss, or for one that does not count a zero that no parameter hears of."""
        if not self._is_looked_through:
            refuse_reentrant(loss)
            self._is_looked_through = True
        self.loss = loss.detach()
        if self._is_last:
            assert self.exchange is not None
            self.exchange.arm()
        return loss if counts else torch.zeros_like(loss, requires_grad=True)

    def backward(self, loss: torch.Tensor) -> None:
        self.connect(loss).backward()

    def prints(self) -> torch.Tensor:
        """A fingerprint of each parameter's gradient, as the backward of one micro-batch has left it."""
        return fingerprint([parameter.grad for parameter in self.parameters])

    def fingerprints(self, grads: list[torch.Tensor]) -> torch.Tensor:
        """A fingerprint of each of the gradients that `finish` has returned."""
        return fingerprint(grads)

    def _grads(self) -> Grads:
        return [None if p.grad is None else as_real(p.grad) for p in self.parameters]

    def _keep_leaf(self, leaf: Block) -> None:
        """Take a leaf's gradients out of `p.grad`, by swapping pointers, into the partly summed tree."""
        if self.num_leaves == 1:
            self._used = [parameter.grad is not None for parameter in self.parameters]
            return  # the only leaf is the sum, and it is where it belongs
        grads = self._grads()
        self._note_used(range(len(grads)), grads)
        for parameter in self.parameters:
            parameter.grad = None
        self._kept.push(leaf, grads)

    def _note_used(self, places: range | list[int], grads: Grads) -> None:
        for place, grad in zip(places, grads, strict=True):
            if grad is not None:
                self._used[place] = True

    def _fold_last_leaf(self, bucket: Bucket) -> list[list[torch.Tensor]]:
        """Add this bucket's part of the kept blocks and of the last leaf into the bucket, as far as siblings go.

        Returns the blocks that stay beside it, with a tensor for each of the bucket's parameters.
        """
        grads = [self.parameters[place].grad for place in bucket.places]
        last: Grads = [None if grad is None else as_real(grad) for grad in grads]
        self._note_used(bucket.places, last)
        bucket.fill(last)
        beside: Sum[Grads] = Sum(lambda left, right: _add(right, left))  # into the bucket; a + b is b + a to the bit
        beside.blocks = [(block, [kept[place] for place in bucket.places]) for block, kept in self._kept.blocks]
        beside.push(self._last_leaf, list(bucket.views))
        return [
            [
                view.new_zeros(()).expand_as(view) if grad is None else grad
                for grad, view in zip(kept, bucket.views, strict=True)
            ]
            for _, kept in beside.blocks[:-1]
        ]

    @property
    def used(self) -> list[bool]:
        """Which parameters got a gradient in this rank's share of the step."""
        return self._used

    def finish(self, used: list[bool] | None = None) -> list[torch.Tensor]:
        """End the step: every used parameter's `grad` holds the sum, every other's is None. Returns those gradients.

        Args:
            used: for each of `parameters` whether any rank used it; by default asked of the ranks here.
        """
        if used is None:
            used = self._used_anywhere()
        if self.exchange is not None:
            self.exchange.write_back(used)
        elif self._kept.blocks:
            for parameter, total in zip(self.parameters, self._kept.total(), strict=True):
                parameter.grad = torch.view_as_complex(total) if total is not None and parameter.is_complex() else total
        self._kept.blocks.clear()
        self._used = [False] * len(self.parameters)
        for parameter in self._others:  # nobody steps it, and nobody else would ever clear it
            parameter.grad = None
        grads = []
        for parameter, is_used in zip(self.parameters, used, strict=True):
            if not is_used:
                parameter.grad = None
            elif parameter.grad is not None:
                if parameter.grad.storage_offset():  # kernels look at alignment: every gradient starts its own memory
                    parameter.grad = parameter.grad.clone()
                grads.append(parameter.grad)
        return grads

    def clear(self) -> None:
        """Drop all gradients, those that nobody steps among them."""
        for parameter in (*self.parameters, *self._others):
            parameter.grad = None

    def _used_anywhere(self) -> list[bool]:
        if self.exchange is None:
            return self._used
        flags = torch.tensor(self._used, dtype=torch.int32, device=self.parameters[0].device)
        dist.all_reduce(flags, dist.ReduceOp.MAX, self._group)
        return [bool(flag) for flag in flags.tolist()]


class FastSum(OrderedSum):
    """The backend's own all-reduce in place of the tree: the same data and weights, equal within rounding."""

    _send = staticmethod(all_reduce)

    def _keep_leaf(self, leaf: Block) -> None:
        """Nothing is kept apart: `p.grad` goes on accumulating."""
        self._note_used(range(len(self.parameters)), self._grads())


def everyone() -> dist.ProcessGroup | None:
    """The group of all ranks; None where this process is alone."""
    return dist.group.WORLD if dist.is_initialized() and dist.get_world_size() > 1 else None


def check_world_size(world_size: int, leaves: int) -> None:
    """Raise UsageError if a step has fewer leaves than there are processes."""
    if world_size > leaves:
        raise UsageError(
            f"processes: found {world_size}, and a step has {leaves} leaves to share; start at most {leaves}, "
            "or write a smaller micro_batch_size"
        )
