"""What people see of a run on a terminal: the bar while it trains, and `samestep status`."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT, Workplace
from samestep.commands import status
from samestep.run.folder import RunFolder


def fact(name: str, **values: Any) -> dict[str, Any]:
    known = dict.fromkeys(("rate", "left", "saved", "job", "why", "nodes", "loss", "best", "parent"))
    return {**known, "run": name, "state": "done", "step": 10, "steps": 10, "left_out": [], "restarts": 0, **values}


def test_the_table_is_as_wide_as_the_terminal_and_keeps_what_matters() -> None:
    runs = [fact("first", loss=0.5, nodes="node[01-16]"), fact("a-much-longer-name-of-a-run", rate=2.0, saved=60.0)]
    whole = status.table(runs)
    assert whole.splitlines()[0].split() == [name for name in status._COLUMNS if name != "best"]
    for width in (100, 80, 60, 30):
        lines = status.table(runs, width).splitlines()
        assert max(map(len, lines)) <= width
        assert [line.split()[0] for line in lines] == ["run", "first", "a-much-longer-name-of-a-run"]
    assert status.table(runs, 80).splitlines()[0].split() == ["run", "state", "step", "loss", "steps/s", "left", "restarts"]
    assert status.table(runs, 60).splitlines()[0].split() == ["run", "state", "step", "loss", "left"]
    assert status.table(runs, 200) == whole
    titles, first, second = status.table([*runs[:1], fact("kept", best={"value": 0.75})]).splitlines()
    assert titles.split()[4] == "best"
    assert (first.split()[4], second.split()[4]) == ("-", "0.7500")


def test_a_state_has_its_colour_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [fact("failed", state="failed"), fact("second", state="running")]
    plain = status.table(runs, 60)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert status.table(runs, 60) == plain
    monkeypatch.delenv("NO_COLOR")
    title, failed, running = status.table(runs, 60).splitlines()
    assert failed.startswith("failed  \033[31mfailed\033[0m   10/10")
    assert running.startswith("second  \033[36mrunning\033[0m  10/10")
    assert re.sub(r"\033\[\d+m", "", "\n".join([title, failed, running])) == plain


def test_a_screen_shows_the_newest_runs_and_counts_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(30):
        (tmp_path / f"run-{number:02d}").mkdir()
        (tmp_path / f"run-{number:02d}/state.json").write_text('{"status": "done", "step": 1}')
        os.utime(tmp_path / f"run-{number:02d}", (number, number))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("LINES", "20")
    monkeypatch.setenv("COLUMNS", "70")
    lines = next(status.shown(None, str(tmp_path), follow=True, as_json=False)).splitlines()
    assert len(lines) < 20
    assert lines[1].startswith("run-29")
    assert lines[-1] == "and 13 older runs"


@pytest.mark.parametrize("parent", [None, {"run": "first", "step": 20}])
def test_a_rate_counts_the_newest_starts_rows_alone(tmp_path: Path, parent: dict[str, Any] | None) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create()
    folder.starts.mkdir(exist_ok=True)
    rows = [{"step": 10, "loss": 1.0, "time": 100.0}, {"step": 20, "loss": 1.0, "time": 105.0}]
    folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder.write_state(status="stopped", step=20, num_steps=50, parent=parent)
    assert status.facts([folder])[0]["rate"] == (None if parent else 2.0)  # of a branch that has not begun: its parent's
    (folder.starts / "0001.json").write_text(json.dumps({"time": 9000.0, "pid": os.getpid()}))
    rows += [{"step": 30, "loss": 1.0, "time": 9010.0}]
    folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert status.facts([folder])[0]["rate"] is None
    rows += [{"step": 40, "loss": 1.0, "time": 9020.0}]
    folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert status.facts([folder])[0]["rate"] == 1.0


def test_one_run_shows_the_way_of_its_loss_and_the_last_evaluation(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create()
    folder.state.write_text('{"status": "done", "step": 8, "num_steps": 8}')
    rows: list[dict[str, Any]] = [
        {"step": step, "time": step, "loss": loss} for step, loss in ((2, 4.0), (4, 2.5), (6, None), (8, 1.0))
    ]
    rows += [{"step": 8, "time": 9, "eval_loss": 1.25, "eval_accuracy": None}]
    folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = next(status.shown("run", str(tmp_path), follow=False, as_json=False)).splitlines()
    assert lines[2:] == ["loss █▅▁ 1 to 4, steps 2 to 8", "step 8  eval_loss 1.25"]


def test_a_bar_shows_loss_rate_time_left_and_the_last_evaluation(workplace: Workplace) -> None:
    config = str(ROOT / "configs/digits.yaml")
    words = ["train", config, "--run", "bar", "epochs=2", "evaluate.every=23", "track.every=1", "track.wandb=off"]
    terminal, its_end = pty.openpty()
    termios.tcsetwinsize(its_end, (24, 140))
    process = subprocess.Popen(
        [sys.executable, "-m", "samestep", *words], cwd=workplace.path, env=workplace.env, stdout=its_end, stderr=its_end
    )
    os.close(its_end)
    shown = b""
    with contextlib.suppress(OSError):  # the terminal's end, once nobody holds it
        while chunk := os.read(terminal, 65536):
            shown += chunk
    os.close(terminal)
    assert process.wait() == 0, shown
    plain = re.sub(r"\033\[\d+m", "", shown.decode(errors="replace"))
    bars = [line for line in re.split(r"[\r\n]+", plain) if "/46 |" in line]
    after = [line for line in bars if "eval_accuracy" in line]
    assert after, bars[-3:]
    numbers = r"loss \d\.\d{4}  \d\d:\d\d left  eval_accuracy \d\.\d{4}  eval_loss \d\.\d{4}  [\d,]+ samples/s  "
    assert re.search(r"\d+/46 \|█.{9,}\| (evaluating  )?" + numbers, after[-1])
    assert any("| evaluating  " in line for line in bars)
    assert max(map(len, bars)) < 140
    assert not any("eval_" in line for line in bars if int(line.split("/46")[0]) < 23)


def test_the_newest_output_of_a_run_is_its_log_whoever_kept_it(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create()
    folder.log(0).write_text("stacks\n")
    assert list(status.log_lines(folder, None, follow=False)) == ["stacks\n"]
    folder.printed.write_text("here\n")
    (folder.path / "job-7.txt").write_text("in a job\n")
    for newest, said in ((folder.printed, "here\n"), (folder.path / "job-7.txt", "in a job\n")):
        for path in (folder.printed, folder.path / "job-7.txt"):
            os.utime(path, (1, 2 if path == newest else 1))
        assert list(status.log_lines(folder, None, follow=False)) == [said]
    assert list(status.log_lines(folder, 0, follow=False)) == ["stacks\n"]
