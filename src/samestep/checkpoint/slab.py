"""The host memory that a run's state is copied into: one piece, which each save uses again."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

import torch

_LINE_BYTES = 64


class Slab:
    """Of pinned memory beside a GPU, from which a stream of its own copies: the training's own stream goes on meanwhile.

    Only what the next optimizer step writes is read by that stream, so that step is all that has to wait for it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._stream: torch.cuda.Stream | None = None
        self._reserving: threading.Thread | None = None

    def reserve(self, num_bytes: int) -> None:
        """Have so much pinned memory ready, by a thread: a gigabyte takes half a second. On a CPU nothing is done ahead."""
        if self._device.type == "cuda":
            self._reserving = threading.Thread(target=self._grow, args=(num_bytes,), name="pinning memory", daemon=True)
            self._reserving.start()

    def copy(
        self, still: Sequence[torch.Tensor], moving: Sequence[torch.Tensor]
    ) -> tuple[list[torch.Tensor], torch.cuda.Event | None]:
        """Contiguous copies of `still` and then of `moving`, and on a GPU when all of them have arrived.

        Args:
            still: nobody writes them before the next optimizer step, which is to wait for the event.
            moving: the next forward may write them.
        """
        places = self._places([*still, *moving])
        if self._device.type != "cuda":
            for place, tensor in zip(places, [*still, *moving], strict=True):
                place.copy_(tensor.detach())
            return places, None
        for place, tensor in zip(places[len(still) :], moving, strict=True):
            place.copy_(tensor.detach(), non_blocking=True)
        self._stream = self._stream or torch.cuda.Stream()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for place, tensor in zip(places, still, strict=False):
                place.copy_(tensor.detach(), non_blocking=True)
                if tensor.is_cuda:  # a forward may lay weights out anew, and an optimizer give copies of its state
                    tensor.record_stream(self._stream)
        arrived = torch.cuda.Event()
        arrived.record(self._stream)
        return places, arrived

    def _places(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Where each of them goes; each begins a line, which any dtype may."""
        starts, end = [], 0
        for tensor in tensors:
            starts.append(end)
            end += size_of([tensor])
        self._grow(end)
        return [
            self._memory[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            for start, tensor in zip(starts, tensors, strict=True)
        ]

    def _grow(self, num_bytes: int) -> None:
        if self._reserving not in (None, threading.current_thread()):
            self._reserving.join()
        if self._memory.numel() < num_bytes:
            self._memory = torch.empty(0, dtype=torch.uint8)  # before there is another
            self._memory = _made(num_bytes, self._device.type == "cuda")


def size_of(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes that copies of these take."""
    return sum(-(-tensor.nbytes // _LINE_BYTES) * _LINE_BYTES for tensor in tensors)


def _made(num_bytes: int, is_pinned: bool) -> torch.Tensor:
    try:
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=is_pinned)
    except RuntimeError:  # so much cannot be pinned here: from other memory a copy holds the step, and no more
        return torch.empty(num_bytes, dtype=torch.uint8)
