"""The ordered sum of a step's gradients: a local fold over this rank's leaves, and the hook for the rest of the tree."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from samestep.errors import UsageError
from samestep.exact.hook import BucketExchange, Grads
from samestep.exact.totals import fingerprint
from samestep.exact.tree import Block, Sum, cuts


class _Connect(torch.autograd.Function):
    """The loss itself, with an edge to every parameter that carries no gradient.

    Every parameter's hook then fires in every backward, whichever of them the loss used: DDP waits for all of them, and its
    own search for unused ones costs a walk through the graph and breaks when `grad` is swapped away. No number changes.
    """

    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor, counts: bool, *parameters: torch.Tensor) -> torch.Tensor:
        ctx.counts, ctx.num_parameters = counts, len(parameters)
        return loss.clone() if counts else torch.zeros_like(loss)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return (grad if ctx.counts else None, None, *[None] * ctx.num_parameters)


def _add(left: Grads, right: Grads) -> Grads:
    """left + right into left; a missing gradient is a real zero at every world size, so it is added as one."""
    both = [(a, b) for a, b in zip(left, right, strict=True) if a is not None and b is not None]
    if both:
        torch._foreach_add_([a for a, _ in both], [b for _, b in both])
    alone = [a for a, b in zip(left, right, strict=True) if a is not None and b is None]
    alone += [b for a, b in zip(left, right, strict=True) if a is None and b is not None]
    if alone:
        torch._foreach_add_(alone, 0.0)  # turns -0 into 0, as adding a zero leaf does
    return [a if a is not None else b for a, b in zip(left, right, strict=True)]


def _refuse_reentrant(loss: torch.Tensor) -> None:
    """Raise UsageError if a backward within the backward would come, which fires a parameter's hooks more than once."""
    seen: set[Any] = set()
    left = [loss.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        if node.name() == "CheckpointFunctionBackward":
            raise UsageError("task: found activation checkpointing with use_reentrant=True; write use_reentrant=False")
        seen.add(node)
        left += [following for following, _ in node.next_functions]


class OrderedSum:
    """Sums the gradients of a step's micro-batches in one fixed tree, the same bits at every world size.

    In anyone's own loop, with or without DDP:

        ordered = OrderedSum(model, micro_batches=8)        # model: a module, or DDP around one
        for v in ordered.share:                             # this rank's of the 8
            with ordered.micro_batch(v):
                ordered.backward(loss(model, v))            # a SUM; divide `p.grad` by the step's weight afterwards
        ordered.finish()                                    # every p.grad holds the sum over all 8

    Args:
        model: on its device. As DDP, it must have been made with `broadcast_buffers=False`.
        micro_batches: V, of one step over all ranks.
        leaves: M, a divisor of V; V / M micro-batches are added in order into one leaf. The world size goes up to M, and
            the copies of the gradients kept are at most ceil(log2(M / W)) + 1. Default: V.

    Raises UsageError if the world size is larger than M.
    """

    def __init__(self, model: torch.nn.Module, micro_batches: int, leaves: int | None = None) -> None:
        distributed = isinstance(model, DistributedDataParallel)
        self._model = model
        self._ddp = model if isinstance(model, DistributedDataParallel) else None
        self.num_leaves = leaves or micro_batches
        self.leaf_size = micro_batches // self.num_leaves
        self._group = self._ddp.process_group if self._ddp is not None else None
        rank = dist.get_rank(self._group) if distributed else 0
        self.world_size = dist.get_world_size(self._group) if distributed else 1
        check_world_size(self.world_size, self.num_leaves)
        share = cuts(self.num_leaves, self.world_size)
        self.share = range(share[rank] * self.leaf_size, share[rank + 1] * self.leaf_size)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._place: dict[torch.Tensor, int] = {parameter: index for index, parameter in enumerate(self._parameters)}
        self._kept: Sum[Grads] = Sum(_add)
        self._used = [False] * len(self._parameters)
        self._is_looked_through = False
        self.watch_first = False  # keep a fingerprint of the share's first micro-batch, for the audit
        self.first_fingerprint = torch.zeros(len(self._parameters), dtype=torch.int64, device=self._parameters[0].device)
        self._last_leaf = Block(share[rank + 1] - 1, 0)
        self.meeting: Callable[[], None] = lambda: None  # called where this rank may wait for the others,
        self.going_on: Callable[[], None] = lambda: None  # and where it has met them and has more of the step to do
        self.exchange: BucketExchange | None = None
        if self._ddp is not None:
            self._prepare_ddp(rank)

    def _prepare_ddp(self, rank: int) -> None:
        assert self._ddp is not None
        if self._ddp.broadcast_buffers or self._ddp.static_graph or self._ddp.gradient_as_bucket_view:
            raise UsageError(
                "exact: found DDP with broadcast_buffers, static_graph or gradient_as_bucket_view; write False for each"
            )
        device = self._parameters[0].device
        self.exchange = BucketExchange(self.num_leaves, rank, self.world_size, device, self._fold_last_leaf, self._group)
        exchange = self.exchange

        def hook(bucket: Any) -> torch.futures.Future[torch.Tensor]:
            self.meeting()
            future = exchange(bucket)
            if not bucket.is_last():
                self.going_on()
            return future

        self._ddp.register_comm_hook(None, lambda state, bucket: hook(bucket))

    @contextlib.contextmanager
    def micro_batch(self, index: int) -> Iterator[None]:
        """Forward and backward of micro-batch `index` belong inside; the last of the share meets the other ranks."""
        last = index == self.share[-1]
        with self._ddp.no_sync() if self._ddp is not None and not last else contextlib.nullcontext():
            yield
        if self.watch_first and index == self.share[0] and (self._ddp is None or not last):
            self.first_fingerprint = fingerprint([parameter.grad for parameter in self._parameters])
        if (index + 1) % self.leaf_size == 0 and (self._ddp is None or not last):
            self._keep_leaf(Block(index // self.leaf_size, 0))

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """A forward and backward inside are this process's own: nothing is summed and nobody is met."""
        with self._ddp.no_sync() if self._ddp is not None else contextlib.nullcontext():
            yield

    def connect(self, loss: torch.Tensor, counts: bool = True) -> torch.Tensor:
        """What to call backward on: the loss, tied to every parameter; one that does not count gives no gradient."""
        if not self._is_looked_through:
            _refuse_reentrant(loss)
            self._is_looked_through = True
        if counts and self._ddp is None:
            return loss
        connected: torch.Tensor = _Connect.apply(loss, counts, *self._parameters)  # type: ignore[no-untyped-call]
        return connected

    def backward(self, loss: torch.Tensor) -> None:
        self.connect(loss).backward()

    def _keep_leaf(self, leaf: Block) -> None:
        """Take a leaf's gradients out of `p.grad`, by swapping pointers, into the partly summed tree."""
        grads: Grads = [parameter.grad for parameter in self._parameters]
        self._note_used(range(len(grads)), grads)
        if self.num_leaves == 1:
            return  # the only leaf is the sum, and it is where it belongs
        for parameter in self._parameters:
            parameter.grad = None
        self._kept.push(leaf, grads)

    def _note_used(self, places: range | list[int], grads: Grads) -> None:
        for place, grad in zip(places, grads, strict=True):
            if grad is not None:
                self._used[place] = True

    def _fold_last_leaf(self, parameters: list[torch.Tensor], views: list[torch.Tensor]) -> list[list[torch.Tensor]]:
        """Add this bucket's part of the kept blocks into the last leaf, which lies in the bucket, as far as siblings go.

        Returns the blocks that stay beside it, with a tensor for each of the bucket's parameters.
        """
        places = [self._place[parameter] for parameter in parameters]
        grads: Grads = [parameter.grad for parameter in parameters]
        self._note_used(places, grads)
        if self.watch_first and len(self.share) == 1:
            self.first_fingerprint[places] = fingerprint(grads)
        beside: Sum[Grads] = Sum(lambda left, right: _add(right, left))  # into the bucket; a + b is b + a to the bit
        beside.blocks = [(block, [kept[place] for place in places]) for block, kept in self._kept.blocks]
        beside.push(self._last_leaf, list(views))
        return [
            [view.new_zeros(()).expand_as(view) if grad is None else grad for grad, view in zip(kept, views, strict=True)]
            for _, kept in beside.blocks[:-1]
        ]

    @property
    def used(self) -> list[bool]:
        """Which parameters got a gradient in this rank's share of the step."""
        return self._used

    def finish(self, used: list[bool] | None = None) -> list[torch.Tensor]:
        """End the step: every used parameter's `grad` holds the sum, every other's is None. Returns those gradients.

        Args:
            used: for each trainable parameter whether any rank used it; by default asked of the ranks here.
        """
        if used is None:
            used = self._used_anywhere()
        if self._ddp is None and self._kept.blocks:
            for parameter, grad in zip(self._parameters, self._kept.total(), strict=True):
                parameter.grad = grad
        self._kept.blocks.clear()
        self._used = [False] * len(self._parameters)
        grads = []
        for parameter, is_used in zip(self._parameters, used, strict=True):
            if not is_used:
                parameter.grad = None
            elif parameter.grad is not None:
                if parameter.grad.storage_offset():  # kernels look at alignment: every gradient starts its own memory
                    parameter.grad = parameter.grad.clone()
                grads.append(parameter.grad)
        return grads

    def _used_anywhere(self) -> list[bool]:
        if self._ddp is None:
            return self._used
        flags = torch.tensor(self._used, dtype=torch.int32, device=self._parameters[0].device)
        dist.all_reduce(flags, dist.ReduceOp.MAX, self._group)
        return [bool(flag) for flag in flags.tolist()]


class FastSum(OrderedSum):
    """The backend's own all-reduce in place of the tree: the same data and weights, equal within rounding."""

    def _prepare_ddp(self, rank: int) -> None:
        assert self._ddp is not None

        def all_reduce(bucket: Any) -> torch.futures.Future[torch.Tensor]:
            if bucket.is_last():
                self.meeting()
            self._note_used([self._place[p] for p in bucket.parameters()], [p.grad for p in bucket.parameters()])
            work = dist.all_reduce(bucket.buffer(), group=self._group, async_op=True)
            return work.get_future().then(lambda future: future.value()[0])  # type: ignore[no-any-return]

        self._ddp.register_comm_hook(None, lambda state, bucket: all_reduce(bucket))

    def _keep_leaf(self, leaf: Block) -> None:
        """Nothing is kept apart: `p.grad` goes on accumulating."""
        self._note_used(range(len(self._parameters)), [parameter.grad for parameter in self._parameters])


def check_world_size(world_size: int, leaves: int) -> None:
    """Raise UsageError if a step has fewer leaves than there are processes."""
    if world_size > leaves:
        raise UsageError(
            f"processes: found {world_size}, and a step has {leaves} leaves to share; start at most {leaves}, "
            "or write a smaller micro_batch_size"
        )
