"""Where a save copies to, and on a GPU, made up here, by which stream and who waits for it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from samestep.checkpoint import Slab
from samestep.config import Schedule
from samestep.optimizer import GatedOptimizer


def test_copies_are_contiguous_of_any_dtype_and_use_the_same_memory_again() -> None:
    tensors = [
        torch.randn(3, 5).t(), torch.tensor(7), torch.zeros(0, 4), torch.arange(3, dtype=torch.uint8),
        torch.randn(2).bfloat16(), torch.randn(3, dtype=torch.complex64), torch.tensor([True, False]),
        torch.randn(5, dtype=torch.float64),
    ]  # fmt: skip
    slab = Slab(torch.device("cpu"))
    for _ in range(2):
        copies, arrived = slab.copy(tensors[:4], tensors[4:])
        assert arrived is None
        for copy, tensor in zip(copies, tensors, strict=True):
            assert copy.is_contiguous()
            assert (copy.dtype, copy.shape) == (tensor.dtype, tensor.shape)
            assert torch.equal(copy, tensor)
        tensors = [tensor.clone() for tensor in tensors]
    first = copies[0].untyped_storage().data_ptr()
    assert slab.copy(tensors, [])[0][0].untyped_storage().data_ptr() == first
    assert torch.equal(slab.copy([torch.ones(1000)], [])[0][0], torch.ones(1000))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of a GPU's streams, in order."""
    asked: list[str] = []

    class Stream:
        name = "side"

        def wait_stream(self, other: Any) -> None:
            asked.append(f"{self.name} waits for {other.name}")

        def wait_event(self, event: Any) -> None:
            asked.append(f"{self.name} waits for the event of {event.of}")

    class Event:
        def record(self, stream: Any) -> None:
            self.of = stream.name
            asked.append(f"event on {stream.name}")

    main = Stream()
    main.name = "main"
    current = [main]

    @contextlib.contextmanager
    def on(stream: Stream) -> Iterator[None]:
        current.append(stream)
        yield
        current.pop()

    copy = torch.Tensor.copy_

    def noted(self: torch.Tensor, other: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        asked.append(f"copy of {other.numel()} on {current[-1].name}{'' if non_blocking else ', blocking'}")
        return copy(self, other)

    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, pin_memory=False, **words: empty(*size, **words))
    monkeypatch.setattr(torch.Tensor, "copy_", noted)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current[-1])
    return asked


def test_beside_a_gpu_what_a_forward_writes_is_copied_before_it_and_the_rest_beside_it(asked: list[str]) -> None:
    slab = Slab(torch.device("cuda"))
    slab.reserve(100)
    _, arrived = slab.copy([torch.ones(1), torch.ones(2)], [torch.ones(3)])
    assert asked == [
        "copy of 3 on main", "side waits for main", "copy of 1 on side", "copy of 2 on side", "event on side",
    ]  # fmt: skip
    assert arrived is not None


def test_the_next_step_waits_for_the_copy_and_the_one_after_does_not(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    parameter = torch.nn.Parameter(torch.ones(4))
    optimizer = GatedOptimizer(torch.optim.SGD([parameter], lr=0.1, foreach=False), Schedule(), 10, None)
    parameter.grad = torch.ones(4)
    _, optimizer.copied = Slab(torch.device("cuda")).copy([parameter], [])
    asked.clear()
    monkeypatch.setattr(optimizer, "_plain_step", lambda: asked.append("step"))
    for step in range(2):
        optimizer.step(step, 1.0, 1.0)
    assert asked == ["main waits for the event of side", "step", "step"]
