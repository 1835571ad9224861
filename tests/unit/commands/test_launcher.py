"""How long a launcher waits for ranks that were told to end."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.api import PContext

from samestep.commands import launcher
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
