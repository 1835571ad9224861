"""What Tab offers: runs, configs and keys, without torch, and in bash itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import BashComplete

from conftest import Workplace
from samestep.cli import cli


def offered(words: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    *before, last = words.split(" ")
    complete = BashComplete(cli, {}, "samestep", "_SAMESTEP_COMPLETE")
    return [item.value for item in complete.get_completions(before, last)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("runs/first/state.json", "runs/second/state.json", "mine.yaml", "mine.py", "more/other.yaml", "notes.txt"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("{}")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("train m", ["mine.py", "mine.yaml", "more/"]),
        ("launch more/", ["more/other.yaml"]),
        ("check st", ["stdlib"]),
        ("train mine.yaml --run f", ["first"]),
        ("diff first s", ["second"]),
        ("logs ", ["first", "second"]),
        ("train mine.yaml opt", ["optimizer."]),
        ("launch optimizer.", ["optimizer.name=", "optimizer.lr="]),
        ("submit mine.yaml --nodes=2 checkpoint.b", ["checkpoint.best=", "checkpoint.background="]),
        ("verify mine.yaml wi", ["with="]),
        ("no", []),
        ("ver", ["verify"]),
    ],
)
def test_tab_offers(words: str, found: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert offered(words, monkeypatch) == found


def test_bash_completes_a_word_and_leaves_no_blank_where_it_goes_on(workplace: Workplace) -> None:
    workplace.env["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    line = """
eval "$(_SAMESTEP_COMPLETE=bash_source samestep)"
compopt() { echo "$@"; }
for last in optimizer.l sta; do
  COMP_WORDS=(samestep launch mine.yaml $last) COMP_CWORD=3 COMPREPLY=()
  [[ $last != sta ]] || COMP_WORDS=(samestep sta) COMP_CWORD=1
  _samestep_completion samestep; echo "${COMPREPLY[@]}"
done
"""
    done = workplace.command("bash", "-c", line)
    assert done.out == "-o nospace\noptimizer.lr=\nstatus\n", done.err


def test_tab_does_not_wait_for_torch() -> None:
    code = (
        "import sys; from click.shell_completion import BashComplete; from samestep.cli import cli\n"
        "assert BashComplete(cli, {}, 'samestep', 'X').get_completions(['train', 'mine.yaml'], 'optimizer.')\n"
        "sys.exit(str({'torch', 'datasets', 'wandb'} & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.strip() == ""
