"""That the stand-in for a device behaves as its table says: what is shown on it is worth no more than this."""

from __future__ import annotations

import functools
import signal
import threading
import time
from collections.abc import Callable

import pytest
from stand_in import MOST_PENDING, Device


def later(seconds: float, do: Callable[[], object]) -> None:
    threading.Timer(seconds, do).start()


def fail() -> None:
    raise ValueError("device-side assert triggered")


def test_work_runs_in_order_behind_launches_that_return_at_once() -> None:
    device, order, go = Device(), list[int](), threading.Event()
    device.kernel(go.is_set)
    for number in range(5):
        device.launch(functools.partial(order.append, number))
    event = device.record()
    assert order == []
    assert not event.query()
    go.set()
    event.synchronize()
    assert event.query()
    assert order == [0, 1, 2, 3, 4]


def test_a_launch_blocks_once_so_many_are_pending() -> None:
    device, go, launched = Device(), threading.Event(), list[int]()

    def launch() -> None:
        for number in range(MOST_PENDING + 10):
            device.launch(lambda: None)
            launched.append(number)

    device.kernel(go.is_set)
    thread = threading.Thread(target=launch, daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while len(launched) < MOST_PENDING - 1 and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.2)
    assert len(launched) == MOST_PENDING - 1  # and the kernel
    go.set()
    thread.join(20)
    assert len(launched) == MOST_PENDING + 10


def test_no_handler_runs_while_the_host_waits_and_other_threads_do() -> None:
    device, go, heard, ran = Device(), threading.Event(), list[int](), list[bool]()
    before = signal.signal(signal.SIGUSR2, lambda number, frame: heard.append(number))
    try:
        device.kernel(go.is_set)
        event = device.record()
        later(0.1, lambda: signal.raise_signal(signal.SIGUSR2))
        later(0.2, lambda: ran.append(not heard))
        later(0.4, go.set)
        event.synchronize()
        assert ran == [True]
        assert heard == [signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_collective_without_its_peer_ends_by_an_abort_alone_and_leaves_anything() -> None:
    device, buffer = Device(), [0.0]
    device.collective(lambda: False, lambda: buffer.__setitem__(0, 0.747))
    event = device.record()
    time.sleep(0.2)
    assert not event.query()
    later(0.1, device.abort)
    event.synchronize()
    assert buffer == [0.747]


def test_an_abort_does_not_end_a_kernel() -> None:
    device, go = Device(), threading.Event()
    device.kernel(go.is_set)
    event = device.record()
    device.abort()
    time.sleep(0.1)
    assert not event.query()
    go.set()
    event.synchronize()


def test_an_error_is_raised_ever_after() -> None:
    device, go = Device(), threading.Event()
    device.kernel(go.is_set)
    device.launch(fail)
    event = device.record()
    later(0.1, go.set)
    for ask in (event.synchronize, event.query, lambda: device.launch(lambda: None)):
        with pytest.raises(RuntimeError, match=r"CUDA error: .*device-side assert"):
            ask()
