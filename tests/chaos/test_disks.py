"""A disk that is full, read-only or damaged never ends a run and never costs the last good checkpoint."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_kills import SLOW, check_traces

from conftest import Workplace

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")

BIG = SLOW.replace("Slow\n", "Slow\nwith: {pause_s: 0.03}\n").replace("steps: 90", "steps: 60")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB for `runs`."""
    folder = tmp_path / "runs"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(folder)], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine does not let a small tmpfs be mounted")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, leave_bytes: int) -> Path:
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):  # the run may have taken the last bytes
        file.write(b"x" * max(0, shutil.disk_usage(folder).free - leave_bytes))
    return filler


def begin(workplace: Workplace) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "samestep", "train", "case.yaml", "--run", "killed"]
    return subprocess.Popen(
        words, cwd=workplace.path, env=workplace.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def rows(workplace: Workplace) -> int:
    path = workplace.path / "runs/killed/metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for_rows(workplace: Workplace, number: int) -> None:
    until = time.monotonic() + 60
    while rows(workplace) < number:
        assert time.monotonic() < until
        time.sleep(0.01)


def refused(run: subprocess.Popen[str]) -> str:
    """Wait until a save has been refused; returns what the run has printed so far."""
    assert run.stdout is not None
    said = ""
    while "could not be saved" not in said:
        line = run.stdout.readline()
        assert line, said
        said += line
    return said


@pytest.mark.parametrize("filled_after", [2, 20])
def test_a_full_disk_is_said_and_saving_goes_on_when_there_is_room(
    workplace: Workplace, small_disk: Path, filled_after: int
) -> None:
    workplace.write("case.yaml", BIG)
    run = begin(workplace)
    wait_for_rows(workplace, filled_after)
    filler = fill(small_disk, 0)
    refused(run)
    filler.unlink()
    out, _ = run.communicate(timeout=120)
    assert run.returncode == 0, out
    assert "is saved: there is room again" in out
    shutil.copytree(workplace.path / "runs/killed", workplace.path / "copy")
    whole = workplace.train("case.yaml", "--run", "whole", "runs=elsewhere", "with.pause_s=0")
    assert out.rstrip().endswith(whole.weights)
    shutil.copytree(workplace.path / "elsewhere/whole", workplace.path / "runs/whole")
    check_traces(workplace, "killed", "whole")


def test_a_disk_that_stays_full_keeps_the_last_good_checkpoint(workplace: Workplace, small_disk: Path) -> None:
    workplace.write("case.yaml", BIG)
    run = begin(workplace)
    wait_for_rows(workplace, 18)
    filler = fill(small_disk, 0)
    refused(run)
    run.send_signal(signal.SIGKILL)
    run.communicate(timeout=30)
    filler.unlink()
    done = workplace.train("case.yaml", "--run", "killed")
    assert done.code == 0, done.err
    assert "resumed from step 14" in done.out
    assert done.weights == workplace.train("case.yaml", "--run", "whole", "runs=elsewhere", "with.pause_s=0").weights
