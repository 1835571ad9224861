"""File systems as clusters have them: without a sync of folders, without locks."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from test_disks import begin, wait_for_rows
from test_kills import SLOW, check_traces

from conftest import Workplace

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="the layer under the tests is compiled by gcc")

PLAIN = SLOW.replace("Slow\n", "Slow\nwith: {pause_s: 0.03}\n").replace("steps: 90", "steps: 60")
NO_SYNC = "does not sync folders: should its machine lose power, the newest checkpoint may be lost"
NO_LOCKS = "has no locks: another start of this run would take it over, and end this one"


@pytest.fixture
def on_a_plain_disk(workplace: Workplace) -> Workplace:
    """A workplace whose `runs` lie on a file system that can do less."""
    library = workplace.path / "plain_disk.so"
    source = Path(__file__).parent / "plain_disk.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source)], check=True, timeout=60)
    workplace.env |= {"LD_PRELOAD": str(library), "PLAIN_DISK": str(workplace.path / "runs")}
    workplace.write("case.yaml", PLAIN)
    return workplace


def whole(workplace: Workplace) -> str:
    """The weights of a run that nothing befell."""
    return workplace.train("case.yaml", "--run", "whole", "with.pause_s=0").weights


def test_a_run_is_killed_and_goes_on(on_a_plain_disk: Workplace) -> None:
    run = begin(on_a_plain_disk)
    wait_for_rows(on_a_plain_disk, 18)
    run.send_signal(signal.SIGKILL)
    out, _ = run.communicate(timeout=30)
    assert NO_SYNC in out
    assert NO_LOCKS in out
    done = on_a_plain_disk.train("case.yaml", "--run", "killed", processes=2)
    assert done.code == 0, done.err
    assert "resumed from step 14" in done.out
    assert done.weights == whole(on_a_plain_disk)
    check_traces(on_a_plain_disk, "killed", "whole")


def test_a_second_start_takes_the_run_over_and_the_first_writes_no_more(on_a_plain_disk: Workplace) -> None:
    first = begin(on_a_plain_disk)
    wait_for_rows(on_a_plain_disk, 18)
    second = on_a_plain_disk.train("case.yaml", "--run", "killed")
    out, _ = first.communicate(timeout=60)
    assert second.code == 0, second.err
    assert first.returncode != 0
    assert "start 2 has taken this run over; start 1 writes no more" in out
    assert second.weights == whole(on_a_plain_disk)
    assert on_a_plain_disk.state("killed")["status"] == "done"
