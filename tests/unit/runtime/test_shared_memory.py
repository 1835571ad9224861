"""Memory that ranks share: messages arrive whole and in order, and a rank that dies keeps nobody waiting."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from samestep.runtime import shared_memory
from samestep.runtime.shared_memory import Channel, accept, offer


def ranks(world_size: int, num_bytes: int, work: Callable[[Channel, int], None], others: Callable[[Channel, int], None]) -> int:
    """Rank 0 does `work` here, and the `others` in processes of their own; returns how many of those failed."""
    offered = offer(num_bytes, world_size)
    assert offered is not None
    address, handle = offered
    children = []
    (ready, say_ready), (go, say_go) = os.pipe(), os.pipe()  # none begins before all have their locks, as in make_channel
    for rank in range(1, world_size):
        if (child := os.fork()) == 0:
            code = 1
            try:
                os.close(say_go)
                accepted = accept(address)
                assert accepted is not None
                channel = Channel(accepted, num_bytes, rank, world_size)
                os.write(say_ready, b".")
                os.read(go, 1)
                others(channel, rank)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    try:
        channel = Channel(handle, num_bytes, 0, world_size)
        for _ in children:
            assert os.read(ready, 1)
        os.close(say_go)
        work(channel, 0)
    except BaseException:
        for child in children:
            os.kill(child, signal.SIGKILL)
        raise
    finally:
        codes = [os.waitpid(child, 0)[1] for child in children]
        for end in (ready, say_ready, go):
            os.close(end)
    return sum(code != 0 for code in codes)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_messages_arrive_whole_and_in_order_however_the_ranks_dawdle(world_size: int) -> None:
    num_bytes, turns = 100_000, 300

    def talk(channel: Channel, rank: int) -> None:
        torch.set_num_threads(1)
        dice = random.Random(rank)
        for turn in range(turns):
            length = 1 + 997 * turn % num_bytes
            for pause in (dice.random(), dice.random()):
                time.sleep(pause**8 * 0.005)
            mine = torch.full((length,), (turn + 7 * rank) % 251, dtype=torch.uint8)
            if turn == 100 and rank == 1:
                time.sleep(0.3)  # whoever takes his time is not dead
            receive = channel.send(mine[: length // 2], mine[length // 2 :])
            time.sleep(dice.random() ** 8 * 0.005)
            found = receive()
            meant = torch.tensor([[(turn + 7 * other) % 251] for other in range(world_size)], dtype=torch.uint8)
            assert torch.equal(found, meant.expand(-1, length)), (turn, rank)

    assert ranks(world_size, num_bytes, talk, talk) == 0


@pytest.mark.timeout(60)
@pytest.mark.parametrize("number", [signal.SIGKILL, None], ids=["killed", "left"])
def test_a_rank_that_ends_keeps_nobody_waiting(number: signal.Signals | None, monkeypatch: pytest.MonkeyPatch) -> None:
    late = threading.Timer(10, lambda: monkeypatch.setattr(shared_memory.abort, "is_set", True))

    def die(channel: Channel, rank: int) -> None:
        channel.send(torch.ones(8, dtype=torch.uint8))()
        if number is not None:
            os.kill(os.getpid(), number)

    def wait(channel: Channel, rank: int) -> None:
        assert channel.send(torch.ones(8, dtype=torch.uint8))().sum() == 16
        with pytest.raises(RuntimeError, match="rank 1 has ended: Connection closed by peer"):
            channel.send(torch.ones(8, dtype=torch.uint8))()

    late.start()
    try:
        assert ranks(2, 8, wait, die) == (number is not None)
    finally:
        late.cancel()


@pytest.mark.timeout(60)
def test_messages_of_two_sizes_are_no_messages() -> None:
    def talk(channel: Channel, rank: int) -> None:
        receive = channel.send(torch.zeros(8 + rank, dtype=torch.uint8))
        with pytest.raises(RuntimeError, match=f"rank {1 - rank} has sent {9 - rank} bytes, and this one {8 + rank}"):
            receive()

    assert ranks(2, 100, talk, talk) == 0


@pytest.mark.timeout(60)
def test_whoever_waits_is_torn_out_from_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(channel: Channel, rank: int) -> None:
        threading.Timer(0.2, lambda: monkeypatch.setattr(shared_memory.abort, "is_set", True)).start()
        with pytest.raises(RuntimeError, match="torn out"):
            channel.send(torch.ones(8, dtype=torch.uint8))()

    assert ranks(2, 8, wait, lambda channel, rank: time.sleep(2)) == 0


def test_no_other_file_is_taken_for_the_offered_one(tmp_path: Path) -> None:
    offered = offer(8, 2)
    assert offered is not None
    address, handle = offered
    node, path, name = address.rsplit(maxsplit=2)
    try:
        assert accept(f"{node}0 {path} {name}") is None
        assert accept(f"{node} {path} {name}0") is None
        assert accept(f"{node} /proc/{os.getpid()}/fd/999999 {name}") is None
        with (tmp_path / "another").open("w") as file:
            assert accept(f"{node} /proc/{os.getpid()}/fd/{file.fileno()} {name}") is None
        accepted = accept(address)
        assert accepted is not None
        os.close(accepted)
    finally:
        os.close(handle)


def test_where_there_is_no_room_nothing_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(os.listdir("/proc/self/fd"))

    def full(handle: int, start: int, length: int) -> None:
        raise OSError

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert offer(8, 2) is None
    assert len(os.listdir("/proc/self/fd")) == before
