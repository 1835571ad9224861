"""Whoever reads what a run prints may leave before it ends: the run does not."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from conftest import ROOT, Workplace

TASK = """
import time
from samestep.tasks.regression import Regression

class Talking(Regression):
    def loss(self, model, batch):
        print("a word of the task's own", flush=True)
        return super().loss(model, batch)
"""
CONFIG = """
task: talking.py:Talking
global_batch_size: 32
micro_batch_size: 8
steps: STEPS
optimizer: {name: sgd, lr: 1e-3}
track: {every: 1, wandb: 'off'}
"""


@pytest.fixture
def talking(workplace: Workplace) -> Workplace:
    workplace.write("talking.py", TASK)
    workplace.write("talking.yaml", CONFIG.replace("STEPS", "30"))
    workplace.env["EXTRA"] = "dev"
    return workplace


def shell(workplace: Workplace, line: str) -> subprocess.CompletedProcess[str]:
    env = {**workplace.env, "PYTHON": sys.executable, "LOCAL": str(ROOT / "launch/local.sh")}
    return subprocess.run(["bash", "-c", line], cwd=workplace.path, env=env, text=True, capture_output=True, timeout=200)


TRAIN = '"$PYTHON" -m samestep train talking.yaml --run r'


@pytest.mark.parametrize(
    "line",
    [
        f"{TRAIN} >&-",
        f"{TRAIN} >&- 2>&- <&-",
        f"{TRAIN} | head -1; exit ${{PIPESTATUS[0]}}",
        f"{TRAIN} 2>&1 >/dev/full",
        'bash "$LOCAL" talking.yaml --processes 2 --run r >&-',
        'bash "$LOCAL" talking.yaml --processes 2 --run r 2>&1 | head -1; exit ${PIPESTATUS[0]}',
    ],
)
def test_a_run_outlives_who_reads_it(talking: Workplace, line: str) -> None:
    done = shell(talking, line)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert talking.state("r")["status"] == "done"
    assert len(talking.metrics("r")) == 30


def on_its_terminal() -> None:
    """Before a run begins: the terminal is its own, and closing that is heard though these tests may run under nohup."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_terminal_that_is_really_closed_stops_and_saves(talking: Workplace, processes: str) -> None:
    talking.write("talking.yaml", CONFIG.replace("STEPS", "1000000"))
    words = ["bash", str(ROOT / "launch/local.sh"), "talking.yaml", "--processes", processes, "--run", "r"]
    ours, theirs = pty.openpty()
    run = subprocess.Popen(
        words, cwd=talking.path, env=talking.env, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        preexec_fn=on_its_terminal,
    )  # fmt: skip
    os.close(theirs)
    os.set_blocking(ours, False)
    until = time.monotonic() + 120
    while not reached(talking.path / "runs/r/metrics.jsonl", 20):
        assert time.monotonic() < until, "the run did not start"
        with contextlib.suppress(BlockingIOError):
            os.read(ours, 65536)
        time.sleep(0.01)
    os.close(ours)
    assert run.wait(timeout=60) == 75  # it leads the terminal's session, so that the signal came to it alone
    until = time.monotonic() + 60
    while (state := talking.state("r"))["status"] == "running":
        assert time.monotonic() < until, "the run did not stop"
        time.sleep(0.1)
    assert state["status"] == "stopped"
    assert (talking.path / f"runs/r/checkpoints/step-{state['step']:08d}/manifest.json").exists()


def reached(metrics: Path, rows: int) -> bool:
    return metrics.exists() and metrics.read_text().count("\n") >= rows


def test_a_list_whose_reader_leaves_ends_in_silence(talking: Workplace) -> None:
    code = "import sys; from samestep.cli import cli, main; cli.main = lambda **_: print('x' * 9999999); main()"
    done = shell(talking, f'"$PYTHON" -c "{code}" | head -c 0; exit ${{PIPESTATUS[0]}}')
    assert (done.returncode, done.stderr) == (0, "")
