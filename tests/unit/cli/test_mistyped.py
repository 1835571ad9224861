"""A mistyped command line or config is told in lines of samestep's own, with exit code 2, before torch is imported."""

from __future__ import annotations

import sys

import pytest
from mistyped_list import FILES, GOOD, LINES

from conftest import ROOT, Workplace

AS_COMMANDS = 50
IN_CI = 8  # of them; each is a process of its own


def test_a_thousand_mistyped_lines(workplace: Workplace) -> None:
    """Those of the list, and as many drawn ones as make a thousand: a failure prints the line and the seed."""
    done = workplace.command(sys.executable, str(ROOT / "tests/unit/cli/mistyped.py"), "--seed", "1", "--examples", "900")
    assert done.code == 0, done.err
    assert "900 drawn with seed 1" in done.out


def _as_commands() -> list[object]:
    every = len(LINES) // AS_COMMANDS
    chosen = [line for line in LINES[::every] if not any("runs/" in told or "first" in told for told in (line[1], *line[0]))]
    chosen = [line for line in chosen if line[0][:1] not in (["submit"], ["job"])][:AS_COMMANDS]
    marks = [() if number % (len(chosen) // IN_CI) == 0 else (pytest.mark.long,) for number in range(len(chosen))]
    return [pytest.param(*line, marks=marks[number]) for number, line in enumerate(chosen)]


@pytest.mark.parametrize(("words", "told"), _as_commands(), ids=lambda value: " ".join(value)[:40] if value else "nothing")
def test_a_mistyped_command_is_told_in_the_shell_too(workplace: Workplace, words: list[str], told: str) -> None:
    for name, content in {**FILES, "good.yaml": GOOD}.items():
        (workplace.path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (workplace.path / "folder.yaml").mkdir()
    done = workplace.samestep(*words)
    assert done.code == 2, done.err
    assert told in done.err
    assert "Traceback" not in done.err
    assert all(line.startswith("samestep: ") for line in done.err.splitlines())


def test_a_mistyped_key_is_the_last_word_of_torchrun_too(workplace: Workplace) -> None:
    workplace.write("good.yaml", GOOD)
    done = workplace.train("good.yaml", "stesp=3", processes=2)
    told = [line for line in done.err.splitlines() if "stesp: unknown key; did you mean steps?" in line]
    assert told[0] == "samestep: stesp: unknown key; did you mean steps?"
    assert all("traceback : " in line for line in told[1:])  # on torchrun's page, for each rank that it has waited for
    assert len(told) > 1
    assert not (workplace.path / "runs").exists()
