"""The tests themselves: whoever runs them, and however they end, they leave nothing behind."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil

from conftest import ROOT

LEAVES = """
import os, signal, subprocess, sys

def test_a_process_that_is_interrupted(tmp_path):
    sleeper = subprocess.Popen(["sleep", "600"], cwd=tmp_path)
    sleeper.send_signal(signal.SIGINT)
    assert sleeper.wait(10) == -signal.SIGINT

def test_one_that_is_left_behind(tmp_path):
    started = subprocess.Popen(["sleep", "600"], cwd=tmp_path, start_new_session=True)
    print("left", started.pid)
    assert False
"""


def test_ignored_signals_are_not_handed_on_and_a_failed_test_leaves_no_process(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text((ROOT / "tests/conftest.py").read_text().replace(
        "Path(__file__).resolve().parent.parent", f"Path({str(ROOT)!r})"))  # fmt: skip
    (tmp_path / "test_it.py").write_text(LEAVES)
    (tmp_path / "pytest.ini").write_text("[pytest]")
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-s", "test_it.py"]
    line = ["bash", "-c", 'trap "" INT HUP; exec "$@"', "bash", *words]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    left = int(next(text for text in done.stdout.splitlines() if "left " in text).rpartition(" ")[2])
    until = time.monotonic() + 10
    while psutil.pid_exists(left) and time.monotonic() < until:
        time.sleep(0.1)
    assert not psutil.pid_exists(left)
