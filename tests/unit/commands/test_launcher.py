"""How long a launcher waits for ranks that were told to end."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.api import PContext

from samestep.commands import launch, launcher
from samestep.run.folder import RunFolder


def test_a_launcher_waits_longer_than_a_save_and_one_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[int] = []
    monkeypatch.setattr(PContext, "close", lambda self, death_sig=None, timeout=30: waited.append(timeout))
    folder = RunFolder(tmp_path)
    launcher._wait_for_saves(folder)
    context: PContext = object.__new__(type("Context", (PContext,), dict.fromkeys(PContext.__abstractmethods__)))
    context.close()
    folder.write_state(saving_s=4.2)
    context.close()
    folder.write_state(saving_s=100.5)
    context.close()
    context.close(timeout=900)
    assert waited == [30, 30, 221, 900]


def test_what_was_told_to_stop_and_could_not_save_is_stopped_all_the_same(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create()
    folder.begin_start(1, {})
    folder.write_state(status="running", reason="")
    assert launch.outcome(folder, 1, 1) == (1, "samestep: a process was killed; see the lines above")
    folder.write_state(status="running", reason="")
    code, said = launch.outcome(folder, 1, 128 + signal.SIGINT)
    assert (code, said) == (
        75,
        "samestep: stopped before it could save; the same line with --run run goes on from what is saved",
    )
    assert folder.read_state()["status"] == "stopped"
    assert launch.outcome(folder, 2, 128 + signal.SIGINT) == (75, "samestep: stopped before it began; the same line starts it")
