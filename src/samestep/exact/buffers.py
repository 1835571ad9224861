"""What a forward may write into beside gradients: buffers that always move, taken together, and those that rarely do."""

from __future__ import annotations

import torch
from torch.nn.modules.batchnorm import _NormBase

from samestep.errors import UsageError


class Buffer:
    """One buffer by its place in the model: a forward may write into it or put another tensor there."""

    def __init__(self, module: torch.nn.Module, name: str, path: str) -> None:
        self.module, self.name, self.path = module, name, path
        self.is_norms = isinstance(module, _NormBase)
        self.start = self.now.clone()
        self.is_suspect = True  # `.data` and torch's own batch_norm write without a trace, which a look at the bits shows
        self._seen = (self.now, self.now._version)

    @property
    def now(self) -> torch.Tensor:
        buffer = self.module._buffers.get(self.name)
        if buffer is None:
            raise UsageError(f"task: the forward removed {self.path} of the model; do that in model()")
        return buffer

    @property
    def is_touched(self) -> bool:
        """Whether anybody may have written here since `begin`."""
        tensor, version = self._seen
        return self.is_suspect or self.module._buffers.get(self.name) is not tensor or tensor._version != version

    def begin(self) -> None:
        """A step starts with what stands here."""
        self.start = self.start.copy_(self.now) if self.start.shape == self.now.shape else self.now.clone()
        self._seen = (self.now, self.now._version)

    def reset(self) -> None:
        """The next micro-batch starts where the step did."""
        buffer = self.module._buffers.get(self.name)
        if buffer is None or buffer.shape != self.start.shape:
            self.module._buffers[self.name] = self.start.clone()
        else:
            buffer.copy_(self.start)
        self._seen = (self.now, self.now._version)

    def lay(self, arrived: torch.Tensor) -> None:
        """End a step of one micro-batch: what it left stays, if `arrived`."""
        if self.now.shape != self.start.shape:
            return
        if self.is_suspect and torch.equal(self.now, self.start):
            self.is_suspect = False  # until the next look
        else:
            self.now.copy_(torch.where(arrived, self.now, self.start))


class Moving:
    """Buffers that each forward of a norm writes, one after the other in one row: whatever is done to all is a few kernels.

    Args:
        buffers: of shapes that stay; the row is of the dtype that holds all of theirs.
    """

    def __init__(self, buffers: list[Buffer], device: torch.device) -> None:
        self.buffers, self._device = buffers, device
        self.begin()

    def __len__(self) -> int:
        """Numbers in the row."""
        return len(self.start)

    def row(self) -> torch.Tensor:
        """A copy of what stands in the model, of shape (numbers,)."""
        if not self.buffers:
            return torch.zeros(0, device=self._device)
        return torch.cat([buffer.now.reshape(-1) for buffer in self.buffers])

    def begin(self) -> None:
        """A step starts with what stands here."""
        self.start = self.row()
        self._shapes = [buffer.now.shape for buffer in self.buffers]
        self._starts = self._views(self.start)

    def reset(self) -> None:
        """The next micro-batch starts where the step did."""
        for buffer, shape, start in zip(self.buffers, self._shapes, self._starts, strict=True):
            now = buffer.module._buffers.get(buffer.name)
            if now is None or now.shape != shape:
                buffer.module._buffers[buffer.name] = start.to(now.dtype if now is not None else start.dtype, copy=True)
        self._put(self._starts)

    def lay(self, values: torch.Tensor, counts: torch.Tensor) -> None:
        """Where `counts`, `values` of the row's shape are what stands in the model, and elsewhere what the step began with."""
        if self.buffers:
            self._put(self._views(torch.where(counts, values.to(self.start.dtype), self.start)))

    def _views(self, row: torch.Tensor) -> list[torch.Tensor]:
        sizes = [shape.numel() for shape in self._shapes]
        return [part.view(shape) for part, shape in zip(row.split(sizes), self._shapes, strict=True)]

    def _put(self, values: list[torch.Tensor]) -> None:
        if self.buffers:
            torch._foreach_copy_([buffer.now for buffer in self.buffers], values)
