"""What tests share: starting samestep as users start it, and reading what a run left."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / folder) for folder in ("slurm", "promise", "unit")]
pytest_plugins = ["slurm_site"]  # the one cluster of a session, for whoever asks for it


# Whoever starts the tests in the background, or under nohup, has them inherit signals that are ignored, and everything that
# they start as well. A handler does not outlive an exec: what is started here hears of each signal.
for _number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, lambda number, frame: None)


# One stall of a busy machine is no fault of an example's, and the same examples each time are no surprise to anyone.
settings.register_profile("samestep", deadline=None, derandomize=True, database=None)
settings.load_profile("samestep")

_NOT_THE_USERS = (
    "WANDB",
    "SLURM",
    "SBATCH",
    "SAMESTEP",
    "MASTER_",
    "RANK",
    "LOCAL_",
    "WORLD_SIZE",
    "TORCHELASTIC",
    "ACCELERATE",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests run side by side, those that share the cluster, or a server of ranks, stay one after another."""
    for item in items:
        names = set(getattr(item, "fixturenames", ()))
        for shared in {"cluster", "checker", "ranks"} & names:
            item.add_marker(pytest.mark.xdist_group(shared))


@dataclass
class Finished:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def weights(self) -> str:
        last = self.out.rstrip("\n").rpartition("\n")[2]
        assert last.startswith("weights "), self.out + self.err
        return last.removeprefix("weights ")


class Workplace:
    """A folder of a test's own, with the ways to start a run in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.env = {
            **{key: value for key, value in os.environ.items() if not key.startswith(_NOT_THE_USERS)},
            "WANDB_MODE": "offline",
            "NETRC": os.devnull,
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONFAULTHANDLER": "1",
            "TMPDIR": str(path / "tmp"),  # what torchrun and wandb leave behind goes with the test's folder
        }
        (path / "tmp").mkdir(exist_ok=True)

    def write(self, name: str, text: str) -> str:
        (self.path / name).write_text(text)
        return name

    def command(self, *words: str, timeout: float = 200) -> Finished:
        process = subprocess.Popen(
            words, cwd=self.path, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            processes = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            for each in reversed(processes):  # each prints the stacks of its threads
                with contextlib.suppress(psutil.Error):
                    each.send_signal(signal.SIGABRT)
            out, err = process.communicate(timeout=20)
            raise AssertionError(f"{' '.join(words)} did not end in {timeout} s:\n{out[-3000:]}\n{err[-60_000:]}") from None
        return Finished(process.returncode, out, err)

    def samestep(self, *words: str) -> Finished:
        return self.command(sys.executable, "-m", "samestep", *words)

    def train(self, *words: str, processes: int = 1, timeout: float = 200) -> Finished:
        """`samestep train` with the given words, as one process or under torchrun."""
        if processes == 1:
            return self.command(sys.executable, "-m", "samestep", "train", *words, timeout=timeout)
        launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes))
        return self.command(sys.executable, *launcher, "-m", "--", "samestep", "train", *words, timeout=timeout)

    def metrics(self, run: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.path / "runs" / run / "metrics.jsonl").read_text().splitlines()]

    def state(self, run: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.path / "runs" / run / "state.json").read_text())
        return found


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, Any]:
    """What a test has started in its own folder ends with it, also where it fails."""
    report = yield
    folder = getattr(item, "funcargs", {}).get("tmp_path")
    if call.when == "call" and call.excinfo is not None and folder is not None:
        end_all_in(folder)
    return report


def end_all_in(folder: Path) -> None:
    """End every process that works in a folder, or below it."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and Path(process.cwd()).is_relative_to(folder):
                process.kill()


@pytest.fixture
def workplace(tmp_path: Path) -> Workplace:
    return Workplace(tmp_path)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for each reason why something was left out."""
    reasons = collections.Counter(str(report.longrepr[2]) for report in terminalreporter.stats.get("skipped", []))
    for reason, number in reasons.items():
        terminalreporter.write_line(f"left out, {number} tests: {reason.removeprefix('Skipped: ')}")
