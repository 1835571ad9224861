"""What a run's log has of what the run printed."""

from __future__ import annotations

import os
from pathlib import Path

from samestep.run.printed import _Lines, _Log, _Optional


def test_lines_are_held_until_there_is_a_log_and_then_written_at_once(tmp_path: Path) -> None:
    log = _Log()
    lines = _Lines(log)
    lines.take(b"before\nhalf ")
    log.open(tmp_path / "log.txt", "rank 1: ", "--- start 1 ---")
    assert (tmp_path / "log.txt").read_text() == "--- start 1 ---\nrank 1: before\n"
    lines.take(b"a line\nnext")
    assert (tmp_path / "log.txt").read_text() == "--- start 1 ---\nrank 1: before\nrank 1: half a line\n"
    again = _Log()
    again.open(tmp_path / "log.txt", "", "--- start 2 ---")
    assert (tmp_path / "log.txt").read_text().endswith("rank 1: half a line\n--- start 2 ---\n")


def test_of_a_bar_there_is_nothing_but_its_end_and_what_is_printed_over_it_is_whole(tmp_path: Path) -> None:
    log = _Log()
    log.open(tmp_path / "log.txt", "", "")
    bar, words = _Lines(log), _Lines(log)  # stderr and stdout
    bar.take(b"\r  0%|          | 0/3")
    bar.take(b"\r 33%|###       | 1/3")
    bar.take(b"\r                    \r")  # cleared, for a line above it
    words.take(b"step 1  \x1b[32mloss 0.5\x1b[0m\n")
    bar.take(b"\r 66%|######    | 2/3")
    bar.take(b"a warning\n")
    bar.take(b"\r100%|##########| 3/3")
    bar.take(b"\n")
    bar.take(b"\r 10%|#         |")
    bar.take(b"\r            \r")
    bar.take(b"\n\nthe end\n")
    assert (tmp_path / "log.txt").read_text() == "step 1  loss 0.5\na warning\n100%|##########| 3/3\n\nthe end\n"


def test_what_nobody_reads_any_more_is_kept_all_the_same(tmp_path: Path) -> None:
    log = _Log()
    log.open(tmp_path / "log.txt", "", "")
    reader, writer = os.pipe()
    os.close(reader)
    with _Optional(writer, "w") as stream:
        stream.keep(log)
        assert stream.write(b"saved\n") == 6
    assert (tmp_path / "log.txt").read_text() == "saved\n"
