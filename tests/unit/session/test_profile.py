"""`profile`: a trace and a table of some steps, which keep their bits."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from built_here import Noting, built

from samestep.checkpoint import weights_hash
from samestep.config import Profile
from samestep.errors import Stopped
from samestep.loop import train
from samestep.run.folder import RunFolder
from samestep.session.profile import profiled
from samestep.tracking import NullTracker


def traces(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("profile/*"))


def test_a_profile_has_its_steps_and_changes_no_bit(tmp_path: Path) -> None:
    alone, tracker = built(NullTracker()), Noting()
    train(alone)
    run = built(tracker, "audit.every=1000")
    with profiled(Profile(start=4, steps=3), run, RunFolder(tmp_path)):
        train(run)
    assert weights_hash(run.model) == weights_hash(alone.model)
    assert traces(tmp_path) == ["step-00000004.json.gz", "step-00000004.txt"]
    trace = json.loads(gzip.decompress((tmp_path / "profile/step-00000004.json.gz").read_bytes()))
    names = [event.get("name") for event in trace["traceEvents"]]
    assert names.count("aten::addmm") == 3
    table = (tmp_path / "profile/step-00000004.txt").read_text().splitlines()
    assert table[0] == "steps 4 to 6: what took longest by itself on the CPU"
    assert len(table) == 12
    assert tracker.lines[: len(table)] == table
    path = f"{tmp_path}/profile/step-00000004"
    assert tracker.lines[len(table)] == f"profile {path}.json.gz, {path}.txt"
    shares = [float(line.split()[1].rstrip("%")) for line in table[2:]]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] > 0
    assert sum(shares) <= 100.5


@pytest.mark.parametrize(("first", "start", "steps", "files"), [(0, 1, 2, 2), (5, 4, 5, 2), (9, 4, 5, 0), (0, 11, 9, 2)])
def test_a_start_profiles_what_it_takes_of_the_steps_asked_for(
    tmp_path: Path, first: int, start: int, steps: int, files: int
) -> None:
    tracker = Noting()
    run = built(tracker, "audit.every=1000")  # the rows are those of the first steps all the same
    run.first_step = first
    with profiled(Profile(start=start, steps=steps), run, RunFolder(tmp_path)):
        train(run)
    assert len(traces(tmp_path)) == files
    if files:
        last = min(start + steps - 1, 12)
        assert tracker.lines[0].startswith(f"steps {max(start, first + 1)} to {last}: ")


def test_a_stop_has_what_was_traced_written(tmp_path: Path) -> None:
    run = built(NullTracker())

    def stops(step: int) -> None:
        if step == 4:
            raise Stopped

    run.after_step = stops
    with pytest.raises(Stopped), profiled(Profile(start=3, steps=9), run, RunFolder(tmp_path)):
        train(run)
    assert (tmp_path / "profile/step-00000003.txt").read_text().startswith("steps 3 to 4: ")


def test_without_a_profile_nothing_is_done_in_a_step(tmp_path: Path) -> None:
    run = built(NullTracker())
    before = run.after_step
    with profiled(None, run, RunFolder(tmp_path)):
        assert run.after_step is before
