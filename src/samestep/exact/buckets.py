"""The rest of the tree across ranks, bucket by bucket, beside the backward that fills the buckets.

A hook on each parameter says when its gradient has arrived. A bucket goes out when all of its own have, and not before the
buckets ahead of it: every rank issues the same collectives in the same order, whatever its backward uses. What never arrives
is a zero: at the end of the backward the buckets that are left go out all the same. Nothing wraps the model, so what a loss
is given, and what it does with it, is the same on one process and on many.

Each bucket goes through an all-to-all of this rank's blocks, the rest of the tree over the piece that this rank then owns,
and an all-gather of the summed pieces: the bytes of a ring all-reduce when every rank holds one block. Where nodes have
several ranks it goes so inside each, and between them. The backend only moves bytes and never adds a float, so its algorithm
and topology cannot change a bit. Bucket i sets out, then those before it go one message further: bucket i - 1 is summed and
its all-gather started. (Starting that from a completion callback deadlocks.)
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence

import torch

from samestep.errors import UsageError
from samestep.exact.route import Companion, Route, Transfer
from samestep.exact.tree import blocks_of, cuts

Grads = list[torch.Tensor | None]
Send = Callable[[Route, int, torch.Tensor, list[Callable[[torch.Tensor], None]], Companion | None], Transfer]

_FIRST_BYTES, _BYTES = 1 << 20, 25 << 20  # the first is small, so that its way begins early in the backward
_ON_THEIR_WAY = 3  # buckets at once


def as_real(tensor: torch.Tensor) -> torch.Tensor:
    """A complex tensor as a view of pairs of real numbers: its parts are summed, moved and compared apart."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def memory_order_views(flat: torch.Tensor, parameters: list[torch.Tensor]) -> list[torch.Tensor]:
    """Each parameter's part of a flat bucket, strided as the parameter is: a reshape would turn `channels_last` weights."""
    views, offset = [], flat.storage_offset()
    for parameter in parameters:
        dense = _is_dense(parameter)
        stride = parameter.stride() if dense else torch.empty(parameter.shape, device="meta").stride()
        views.append(flat.as_strided(parameter.shape, stride, offset))
        offset += parameter.numel()
    return views


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether the elements fill their memory without gaps or overlaps, in whatever order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return True


class Bucket:
    """Some parameters by their places among all, and the memory that their gradients travel in, which stays."""

    def __init__(self, places: list[int], parameters: Sequence[torch.Tensor]) -> None:
        self.places = places
        self.like = [as_real(parameters[place].detach()) for place in places]
        size = sum(part.numel() for part in self.like)
        self.flat = torch.empty(size, dtype=self.like[0].dtype, device=self.like[0].device)
        self.views = memory_order_views(self.flat, self.like)
        self.missing = 0

    def fill(self, grads: Grads) -> None:
        arrived = [(view, grad) for view, grad in zip(self.views, grads, strict=True) if grad is not None]
        if len(arrived) < len(grads):
            self.flat.zero_()
        if arrived:
            torch._foreach_copy_([view for view, _ in arrived], [grad for _, grad in arrived])

    def writer(self, values: list[torch.Tensor]) -> Callable[[torch.Tensor], None]:
        """What lays a block of gradients into memory shaped like this bucket's."""
        return lambda whole: torch._foreach_copy_(memory_order_views(whole, self.like), values)


def exchange_bytes(gradient_bytes: int, num_leaves: int, world_size: int) -> int:
    """What an exchange holds beside the gradients: its buckets, and what arrives of those that are on their way."""
    blocks = sum(len(blocks_of(range(start, stop))) for start, stop in itertools.pairwise(cuts(num_leaves, world_size)))
    return gradient_bytes + _ON_THEIR_WAY * min(gradient_bytes, _BYTES) * -(-blocks // world_size)


def make_buckets(parameters: Sequence[torch.Tensor]) -> list[Bucket]:
    """Buckets of one dtype and device each, in the reverse of the parameters' order, which is about a backward's."""
    kinds: dict[tuple[torch.dtype, torch.device, bool], list[int]] = {}
    for place in reversed(range(len(parameters))):
        parameter = parameters[place]  # what is frozen stands apart: while it is, nothing of it travels
        kinds.setdefault((parameter.dtype, parameter.device, parameter.requires_grad), []).append(place)
    buckets: list[Bucket] = []
    for places in kinds.values():
        taken: list[int] = []
        num_bytes = 0
        for place in places:
            taken.append(place)
            num_bytes += parameters[place].nbytes
            if num_bytes >= (_BYTES if buckets else _FIRST_BYTES):
                buckets.append(Bucket(taken, parameters))
                taken, num_bytes = [], 0
        if taken:
            buckets.append(Bucket(taken, parameters))
    return buckets


class BucketExchange:
    """All buckets of one model, from the last backward of a rank's share to the summed gradients.

    Args:
        parameters: in the same order on every rank; which of them need a gradient may change from step to step.
        fold: gives, for a bucket, this rank's finished blocks that stay beside the last one, which it has folded into it.
        send: makes a bucket's transfer.
    """

    def __init__(
        self, parameters: Sequence[torch.Tensor], route: Route, fold: Callable[[Bucket], list[list[torch.Tensor]]], send: Send
    ) -> None:
        self.route = route
        self.meeting: Callable[[], None] = lambda: None  # called where this rank may wait for the others,
        self.going_on: Callable[[], None] = lambda: None  # and where it has met them and has more of the step to do
        self.companion: Companion | None = None  # of the last bucket
        self._parameters, self._fold, self._send = parameters, fold, send
        self._buckets = make_buckets(parameters)
        self._active: list[Bucket] = []  # those with a parameter that needs a gradient in this step, the same on every rank
        self._bucket_of = {place: bucket for bucket in self._buckets for place in bucket.places}
        self._hooked: set[int] = set()
        self._num_sent = 0
        self._moving: list[Transfer] = []  # those on their way
        self._is_armed = False
        self._device = parameters[0].device
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None

    def arm(self) -> None:
        """The backward that comes is the last of this rank's share: its gradients go out as they arrive."""
        self._num_sent = 0
        self._moving.clear()
        self.route.begin_step()
        for bucket in self._buckets:
            bucket.missing = 0
        for place, parameter in enumerate(self._parameters):
            if parameter.requires_grad:
                self._bucket_of[place].missing += 1
                if place not in self._hooked:  # torch takes no hook on a parameter that needs no gradient yet
                    self._hooked.add(place)
                    parameter.register_post_accumulate_grad_hook(lambda _, place=place: self._arrived(place))
        self._active = [bucket for bucket in self._buckets if bucket.missing]
        self._is_armed = True

    def disarm(self) -> None:
        self._is_armed = False

    def _arrived(self, place: int) -> None:
        if not self._is_armed:
            return
        bucket = self._bucket_of[place]
        bucket.missing -= 1
        if bucket.missing < 0:
            raise UsageError(
                "task: a parameter got its gradient twice in one backward, which adds up after it has been sent; "
                "call no backward() within the backward"
            )
        while self._num_sent < len(self._active) - 1 and not self._active[self._num_sent].missing:
            self._send_next()
            self.going_on()

    def _send_next(self) -> None:
        bucket = self._active[self._num_sent]
        self.meeting()
        with self._on_side_stream():
            blocks = [bucket.writer(values) for values in self._fold(bucket)]
            companion = self.companion if bucket is self._active[-1] else None
            self._moving.append(self._send(self.route, self._num_sent, bucket.flat, blocks, companion))
            self._num_sent += 1
            self._move()

    def _move(self) -> None:
        """Take each bucket one message further, the latest first, for the others wait for it."""
        done = [transfer for transfer in reversed(self._moving) if next(transfer, transfer) is transfer]
        self._moving = [transfer for transfer in self._moving if transfer not in done]

    def drain(self) -> None:
        """After the backward: send what is left, the last bucket at least, and wait until every bucket holds the sum."""
        self.disarm()
        while self._num_sent < len(self._active):
            self._send_next()
        with self._on_side_stream():
            while self._moving:
                self._move()
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def write_back(self, used: list[bool]) -> None:
        """Every used parameter's `grad` holds the sum, in memory of its own; the others' stay as they are."""
        for bucket in self._active:
            targets, sums = [], []
            for place, view in zip(bucket.places, bucket.views, strict=True):
                if used[place]:
                    parameter = self._parameters[place]
                    if parameter.grad is None:
                        parameter.grad = torch.empty_like(parameter)
                    targets.append(as_real(parameter.grad))
                    sums.append(view)
            if targets:
                torch._foreach_copy_(targets, sums)

    @contextlib.contextmanager
    def _on_side_stream(self) -> Iterator[None]:
        """On CUDA all of it runs beside backward: a wait for a peer on the compute stream would stall it."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            yield
