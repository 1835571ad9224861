"""The README's own example, and the lines for other launchers, are run as they stand there."""

from __future__ import annotations

import re

import pytest

from conftest import ROOT, Workplace

README = (ROOT / "README.md").read_text()
LAUNCHERS = (ROOT / "docs/launchers.md").read_text()


def block(language: str, first_line: str, text: str = README) -> str:
    found: list[str] = re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return next(text for text in found if text.startswith(first_line))


@pytest.fixture
def mine(workplace: Workplace) -> Workplace:
    workplace.write("mine.py", block("python", "# mine.py"))
    workplace.write("mine.yaml", block("yaml", "# mine.yaml"))
    return workplace


def test_the_example_is_as_short_as_it_says(mine: Workplace) -> None:
    lines = [line for line in block("python", "# mine.py").splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) <= 20


def test_the_example_trains_and_learns(mine: Workplace) -> None:
    for line in block("bash", "bash launch/debug.sh mine.yaml").splitlines():
        words = line.partition("#")[0].split()
        done = mine.command(words[0], str(ROOT / words[1]), *words[2:], "track.wandb=off")
        assert done.code == 0, done.err
    assert mine.state("wide")["loss"] < 0.01
    assert mine.metrics("wide")[-1]["eval_loss"] < 0.01


def test_the_lines_on_diff_replay_and_audit_work(mine: Workplace) -> None:
    for line in block("bash", "samestep verify configs/stdlib.yaml").splitlines():
        words = line.partition("#")[0].replace("configs/", f"{ROOT}/configs/").split()
        done = mine.samestep(*words[1:])
        assert done.code == (1 if words[1] == "diff" else 0), done.err


def test_the_lines_for_other_launchers_work(mine: Workplace) -> None:
    weights = set()
    for line in block("bash", "python -m samestep train mine.yaml", LAUNCHERS).splitlines():
        words = line.partition("#")[0].replace("configs/", f"{ROOT}/configs/").split()
        done = mine.command("env", f"PATH={ROOT}/.venv/bin:/usr/bin:/bin", *words)
        assert done.code == 0, done.err
        weights.add(done.weights)
    assert len(weights) == 1


def test_the_example_is_a_script_with_the_line_that_is_shown(mine: Workplace) -> None:
    mine.write("mine.py", f"{block('python', '# mine.py')}\n\nimport samestep\n{block('python', 'samestep.main(')}")
    done = mine.command(
        "env", f"PATH={ROOT}/.venv/bin:/usr/bin:/bin", "python", "mine.py", "--run", "script", "lr=3e-3", "epochs=1"
    )
    assert done.code == 0, done.err
    assert done.weights


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150
