"""Who lives, and where a device stands: what the watchdog's thread finds out while the main thread waits in C."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from conftest import ROOT
from samestep.control import NoBoard, Progress, StopFlag, Watchdog, gate, living
from samestep.control.culprits import MEETING, Table
from samestep.control.gate import Gate
from samestep.control.living import Living
from samestep.exact import StepExchange
from samestep.runtime import Runtime, prepare_environment

sys.path.append(str(ROOT / "tests" / "chaos"))
from stand_in import Device


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        yield process
        process.kill()


def announce(board: NoBoard, rank: int, pid: int, created: float, machine: str | None = None) -> None:
    words = {"machine": machine or living._machine(), "pid": pid, "created": created, "host": f"host{rank}"}
    board.write("process", rank, json.dumps(words))


def test_a_rank_of_this_machine_is_dead_once_its_process_is(sleeper: subprocess.Popen[bytes]) -> None:
    board = NoBoard()
    ranks = [Living(board, rank, 2, "here", silent_s=1e9) for rank in (0, 1)]
    ranks[0].announce()
    announce(board, 1, sleeper.pid, psutil.Process(sleeper.pid).create_time())
    assert ranks[0].dead() == {}
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)  # a zombie, as until its launcher looks
    assert ranks[0].dead() == {1: "host1"}
    sleeper.wait()
    assert ranks[0].dead() == {1: "host1"}
    assert Living(board, 5, 8, "elsewhere", silent_s=1e9).dead() == {1: "host1"}  # who cannot look is told


def test_another_process_of_the_same_number_is_not_the_rank() -> None:
    board = NoBoard()
    own = Living(board, 0, 2, "here", silent_s=1e9)
    announce(board, 1, os.getpid(), created=1.0)
    own.announce()
    assert own.dead() == {1: "host1"}


def test_a_rank_of_another_machine_is_dead_once_it_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    board = NoBoard()
    own = Living(board, 1, 3, "here", silent_s=30)
    own.announce()
    for rank in (0, 2):
        announce(board, rank, 1, 1.0, machine="another")
    board.write("beat", 2, "1")
    assert own.dead() == {}
    now[0] += 29
    board.write("beat", 2, "2")
    assert own.dead() == {}
    now[0] += 29
    assert own.dead() == {}
    board._texts["beat"].clear()  # the store says nothing: that is no sign of anything
    now[0] += 29
    assert own.dead() == {}
    board.write("beat", 2, "3")
    assert own.dead() == {}
    now[0] += 31
    assert own.dead() == {2: "host2"}


def test_a_signal_is_noticed_while_the_main_thread_waits_for_its_device() -> None:
    before = {number: signal.getsignal(number) for number in StopFlag.SIGNALS}
    stop, device, heard = StopFlag(), Device(), list[int]()
    stop.install()
    stop.listen()
    try:
        device.kernel(lambda: bool(heard))
        event = device.record()
        threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()

        def hear() -> None:
            until = time.monotonic() + 20
            while not stop.signal and time.monotonic() < until:
                time.sleep(0.01)
            heard.append(stop.signal)

        threading.Thread(target=hear).start()
        event.synchronize()
        assert heard == [signal.SIGTERM]
        assert stop.noticed_at is not None
        signal.raise_signal(signal.SIGINT)  # the first Ctrl-C, though the thread has heard of one already
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_loaders_signals_are_not_this_ranks() -> None:
    before = {number: signal.getsignal(number) for number in StopFlag.SIGNALS}
    stop = StopFlag()
    stop.install()
    stop.listen()
    try:
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        os.waitpid(child, 0)
        time.sleep(0.2)
        assert stop.signal == 0
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_device_that_hangs_is_named_where_all_hosts_wait() -> None:
    devices, going = [Device(), Device()], [threading.Event(), threading.Event()]
    board, marks = NoBoard(), [Progress(device.record) for device in devices]
    for rank, device in enumerate(devices):
        watch = Watchdog(60, rank, 2, f"host{rank}", board, Path(os.devnull), lambda paragraph, culprits: None)
        watch.progress = marks[rank]
        watch.step(11)
        watch.at("computing")
        if rank == 1:
            device.kernel(going[1].is_set)
        watch.meeting()
        device.collective(lambda: False, lambda: None)
        watch.at("computing")
        watch.meeting()
        time.sleep(0.2)
        watch._beat()
        watch._board.write("before", rank, json.dumps({"beat": 0}))
    table = Table(board.read("before"), board.read("beat"), own=0, world_size=2)
    assert table.rows[0]["phase"] == MEETING
    assert table.culprits == [1]
    assert "the device of rank 1 on host1 has been computing in step 12" in table.paragraph(60.0, Path("log"))
    going[1].set()


def test_a_gate_that_is_shut_lets_no_loss_through_whatever_came_in() -> None:
    own, loss = Gate(), torch.tensor(0.747)
    assert own.passed(loss) == loss
    assert torch.signbit(own.passed(torch.tensor(-0.0)))
    own.refuse()
    own.shut()
    assert math.isnan(own.passed(loss))
    with pytest.raises(RuntimeError, match="Connection closed by peer"):
        own.refuse()
    late = Gate()
    late.shut()
    assert math.isnan(late.passed(loss))
    late.open()
    assert late.passed(loss) == loss


def test_rubbish_that_came_in_by_an_abort_is_no_steps_total() -> None:
    exchange = StepExchange([range(1), range(1, 2)], micro_batches=2, num_parameters=3, device=torch.device("cpu"))
    exchange._known = set()  # the task's own numbers, on which the ranks have agreed
    rubbish = torch.full((2, exchange._message_size()), 0x3F, dtype=torch.uint8)
    nothing: Any = [True] * 3
    try:
        exchange._take(rubbish)
        assert math.isfinite(exchange.total(nothing, lambda: 0).loss)  # nothing in it tells
        gate.shut()
        exchange._take(rubbish)
        with pytest.raises(RuntimeError, match="Connection closed by peer"):
            exchange.total(nothing, lambda: 0)
    finally:
        gate.open()


def test_nccls_own_watchdog_is_off_where_samestep_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
    monkeypatch.setattr(os, "environ", {name: "1", "MASTER_ADDR": "127.0.0.1"})  # as torchrun sets it
    prepare_environment(Runtime(0, 2, 0, 2, True, "host", None), threads=1, watched=False)
    assert os.environ[name] == "1"
    prepare_environment(Runtime(0, 2, 0, 2, True, "host", None), threads=1, watched=True)
    assert os.environ[name] == os.environ["TORCH_NCCL_ENABLE_MONITORING"] == "0"
