"""Two starts of one run: who waits, for whom, and for how long."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pytest

from samestep.errors import Stopped, UsageError
from samestep.run import owner
from samestep.run.folder import RunFolder

pytestmark = pytest.mark.timeout(60)


@dataclass
class Owned:
    """A run that another process owns, until `told` is closed."""

    folder: RunFolder
    words: str
    told: BinaryIO


@pytest.fixture
def owned(tmp_path: Path) -> Iterator[Owned]:
    heard, told = os.pipe()
    ready, said = os.pipe()
    if (child := os.fork()) == 0:
        os.close(told)
        RunFolder(tmp_path / "run").take("there", "77")
        os.write(said, b"x")
        os.read(heard, 1)
        os._exit(0)
    os.read(ready, 1)
    for end in (heard, ready, said):
        os.close(end)
    with os.fdopen(told, "wb") as open_end:
        words = f"pid {child} on there in job 77 since {time.strftime('%Y-%m-%d')}"
        yield Owned(RunFolder(tmp_path / "run"), words, open_end)
    os.waitpid(child, 0)


def test_the_owner_is_named_at_once_and_a_wait_can_be_ended(owned: Owned, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[str] = []

    def is_asked() -> bool:
        asked.append(capsys.readouterr().err)
        return len(asked) == 3

    with pytest.raises(
        Stopped, match=f"stopped while it waited for {owned.folder.path}, which {owned.words}.* has; the same line"
    ):
        owned.folder.take("here", None, is_asked)
    assert [said.startswith(f"{owned.folder.path}: {owned.words}") for said in asked] == [False, True, False]
    assert asked[1].endswith("has this run; waiting for its end, 60 s at most\n")


def test_an_owner_that_goes_on_writing_rows_is_not_waited_for(owned: Owned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "_LEAST_S", 0.0)
    monkeypatch.setattr(owner, "_LOOKED_EVERY_S", 0.01)
    looked: list[int] = []

    def is_asked() -> bool:
        looked.append(1)
        with owned.folder.metrics.open("a") as rows:
            rows.write("{}\n")
        return len(looked) > 20

    with pytest.raises(UsageError, match=f"this run is owned by {owned.words}.*, which is alive; end it, or write another"):
        owned.folder.take("here", None, is_asked)
    assert len(looked) == owner._ROWS_OF_A_LIVING_OWNER


def test_one_that_writes_its_last_rows_is_waited_for(owned: Owned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "_LEAST_S", 0.0)
    monkeypatch.setattr(owner, "_LOOKED_EVERY_S", 0.01)
    looked: list[int] = []

    def is_asked() -> bool:
        looked.append(1)
        if len(looked) < owner._ROWS_OF_A_LIVING_OWNER:
            with owned.folder.metrics.open("a") as rows:
                rows.write("{}\n")
        if len(looked) == 50:
            owned.told.close()
        return False

    assert owned.folder.take("here", None, is_asked) == []
    assert len(looked) >= 50
    owned.folder.release()
