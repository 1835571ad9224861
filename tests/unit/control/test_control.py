"""Who saves after a death, and what a step that did not arrive leaves behind."""

from __future__ import annotations

import math
import signal
import time
import types
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from samestep.commands.launch import outcome
from samestep.control import NoBoard, StopFlag, Watchdog, board, survivor
from samestep.control.board import StoreBoard
from samestep.errors import UsageError
from samestep.exact import Statistics
from samestep.run.folder import RunFolder
from samestep.runtime import Runtime
from samestep.session import record_failure
from samestep.session import start as session


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board, "_ALIVE_S", 0.0)
    monkeypatch.setattr(board, "_CUT_OFF_S", 0.0)


def test_the_lowest_of_those_who_finished_most_saves() -> None:
    shared = NoBoard()
    shared.write("finished", 0, "10")
    shared.write("finished", 3, "11")
    assert not survivor(shared, 4, 11, lambda: True)
    assert survivor(shared, 2, 11, lambda: True)
    assert not survivor(shared, 1, 10, lambda: True)
    assert not survivor(shared, 2, 11, lambda: False)  # one that was cut off has begun to save


def test_one_alone_saves_when_the_board_has_died_too(tmp_path: Path) -> None:
    class Silent(NoBoard):
        def read(self, topic: str) -> dict[int, str]:
            return {}

    (tmp_path / "starts").mkdir()
    for start in (1, 2):
        ranks = [RunFolder(tmp_path) for _ in range(3)]
        for folder in ranks:
            folder.continue_start(start)
        assert [survivor(Silent(), rank, 5, folder.claim_save) for rank, folder in enumerate(ranks)] == [True, False, False]


def test_the_board_says_who_has_written_in_a_few_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    shared = StoreBoard("127.0.0.1", server.port, 1000, start=1)
    assert shared.read("finished") == {}
    lost = range(496, 504)  # a node of eight
    for rank in set(range(1000)) - set(lost):
        shared.write("finished", rank, str(rank))
    asked: list[int] = []
    store = shared._store

    def check(keys: list[str]) -> bool:
        asked.append(len(keys))
        return bool(store.check(keys))

    monkeypatch.setattr(shared, "_store", types.SimpleNamespace(check=check, multi_get=store.multi_get))
    assert shared.read("finished") == {rank: str(rank) for rank in range(1000) if rank not in lost}
    assert len(asked) < 50


def test_a_step_that_did_not_arrive_leaves_the_running_statistics_as_they_were() -> None:
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm1d(3)
    statistics = Statistics(norm, [range(2)], micro_batches=2, leaves=2)
    for arrived in (True, False):
        before = norm.running_mean.clone()  # type: ignore[union-attr]
        statistics.begin()
        for index in range(2):
            statistics.begin_micro_batch()
            norm(torch.randn(4, 3))
            statistics.end_micro_batch(index, counts=True)
        statistics.average(counted=2)
        statistics.finish(1.0 if arrived else math.nan)
        assert torch.equal(before, norm.running_mean) is not arrived  # type: ignore[arg-type]


def test_running_statistics_are_averaged_over_the_micro_batches_that_hold_rows() -> None:
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm1d(3)
    assert norm.running_mean is not None
    assert norm.num_batches_tracked is not None
    statistics = Statistics(norm, [range(4)], micro_batches=4, leaves=4)
    batches = torch.randn(4, 5, 3)
    statistics.begin()
    for index, batch in enumerate(batches):
        statistics.begin_micro_batch()
        if index != 1:  # one that passes the norm by
            norm(batch)
        statistics.end_micro_batch(index, counts=index < 3)
    statistics.average(counted=3)
    statistics.finish(1.0)
    assert torch.allclose(norm.running_mean, 0.1 * (batches[0].mean(0) + batches[2].mean(0)) / 3)
    assert norm.num_batches_tracked.item() == 1


def test_statistics_that_no_forward_changes_keep_their_bits() -> None:
    torch.manual_seed(0)
    norms = torch.nn.ModuleList([torch.nn.BatchNorm1d(64), torch.nn.BatchNorm1d(64)])
    for norm in norms:
        norm.running_mean.uniform_()  # type: ignore[operator]
    before = norms[1].running_mean.clone()  # type: ignore[operator]
    statistics = Statistics(norms, [range(12)], micro_batches=12, leaves=12)
    statistics.begin()
    for index in range(12):
        statistics.begin_micro_batch()
        norms[0](torch.randn(4, 64))
        statistics.end_micro_batch(index, counts=True)
    statistics.average(counted=12)
    statistics.finish(1.0)
    assert torch.equal(norms[1].running_mean, before)  # type: ignore[arg-type]


def test_a_save_takes_as_long_as_the_disk_takes(tmp_path: Path) -> None:
    accused: list[str] = []
    watch = Watchdog(0.1, 0, 1, "here", NoBoard(), tmp_path / "log", lambda paragraph, culprits: accused.append(paragraph))
    watch.step(0)
    watch.step(1)
    watch.saving()
    watch.start()
    time.sleep(2.5)
    watch.stop()
    assert not accused


def test_a_start_that_never_began_says_nothing_of_the_one_that_lives(tmp_path: Path) -> None:
    live = RunFolder(tmp_path)
    live.create()
    live.write_state(status="running")
    live.starts.mkdir()
    live.begin_start(1, {})
    late = RunFolder(tmp_path)
    runtime = Runtime(0, 1, 0, 1, False, "host", None)
    record_failure(late, runtime, "this run is owned by another")
    assert late.failures() == []
    assert outcome(late, start=2, launcher_code=1) == (2, "")
    assert live.read_state()["status"] == "running"
    record_failure(live, runtime, "planted")
    assert outcome(late, start=1, launcher_code=1) == (1, "samestep: planted")


def test_a_run_folder_that_is_not_shared_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_SHOWN_LATE_S", 0.0)
    runtime = Runtime(1, 2, 0, 1, True, "second", None)
    here, there = RunFolder(tmp_path / "here"), RunFolder(tmp_path / "there")
    here.create()
    here.begin_start(1, {})
    there.continue_start(1)
    session.see_the_start(here, runtime)
    with pytest.raises(UsageError, match="second does not see what rank 0 wrote there"):
        session.see_the_start(there, runtime)


@pytest.mark.parametrize("ignored", [False, True])
def test_a_signal_that_nohup_ignores_stays_ignored(ignored: bool) -> None:
    before = {number: signal.getsignal(number) for number in StopFlag.SIGNALS}
    signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else lambda number, frame: None)
    stop = StopFlag()
    stop.install()
    try:
        signal.raise_signal(signal.SIGHUP)
        assert stop.asked(lambda: 0.0) == (0 if ignored else signal.SIGHUP)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_buffers_that_a_forward_writes_while_they_are_rolled_back_are_seen() -> None:
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm1d(3)
    statistics = Statistics(norm, [range(2)], micro_batches=2, leaves=2)
    assert statistics.is_between_steps()
    statistics.begin()
    norm(torch.randn(4, 3))
    assert not statistics.is_between_steps()
    statistics.roll_back()
    assert statistics.is_between_steps()
    norm(torch.randn(4, 3))  # by a thread that nobody can stop
    assert not statistics.is_between_steps()
