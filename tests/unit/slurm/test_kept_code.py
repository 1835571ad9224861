"""What `samestep submit` writes down: no value of a variable, and no file that looks like a secret."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path

import pytest

from conftest import Workplace
from samestep.slurm.submit import _without_values

CONFIG = "task: mine.py:Mine\nglobal_batch_size: 8\nmicro_batch_size: 8\nsteps: 1\noptimizer: {name: sgd, lr: 1}\n"
TASK = "from helper import width\nfrom samestep.tasks.regression import Regression\n\n\nclass Mine(Regression): ...\n"
DRAWN = "aB3dE5gH7jK9mN1pQ2rS4tU6vW8xY0zA1cD3"


@pytest.fixture
def queue(workplace: Workplace) -> Workplace:
    """A folder with a task, and an sbatch that queues nothing."""
    programs = workplace.path / "bin"
    programs.mkdir()
    (programs / "sbatch").write_text("#!/bin/sh\necho 17\n")
    (programs / "sbatch").chmod(0o755)
    workplace.env["PATH"] = f"{programs}:{workplace.env['PATH']}"
    workplace.write("case.yaml", CONFIG)
    workplace.write("mine.py", TASK)
    workplace.write("helper.py", f'width, key = 1, "{"hf" + "_" + DRAWN}"\n')
    return workplace


@pytest.mark.timeout(120)
def test_what_looks_like_a_secret_stays_where_it_is_and_is_told(queue: Workplace) -> None:
    queue.write("credentials.json", "{}")
    queue.write("words.json", "{}")
    (queue.path / "mine.py").chmod(0o600)
    done = queue.samestep("submit", "case.yaml", "--time=5", "--run", "one")
    assert done.code == 0, done.err
    assert "looks like a secret: credentials.json (its name), helper.py (line 1); they are read where they are" in done.out
    kept = queue.path / "runs" / "one" / "code"
    assert sorted(path.name for path in kept.glob("*.*") if path.is_file()) == ["case.yaml", "mine.py", "words.json"]
    assert stat.S_IMODE((kept / "mine.py").stat().st_mode) == 0o600
    assert stat.S_IMODE((queue.path / "runs" / "one").stat().st_mode) == 0o700
    # The job goes on with the rest as it was, and takes what was left out from where it is.
    queue.write("mine.py", "raise RuntimeError\n")
    queue.env |= {"SAMESTEP_CODE": str(kept), "PYTHONPATH": str(kept / ".samestep")}
    job = queue.command(sys.executable, "-m", "samestep", "train", "case.yaml", "--run", "one")
    assert job.code == 0, job.err
    assert (
        "left out of sources/ of the run folder, as what looks like a secret: helper.py (line 1)" not in job.out
    )  # another folder's
    assert (queue.path / "runs" / "one" / "sources" / "mine.py").stat().st_mode & 0o777 == 0o600


def test_the_note_of_a_submitted_job_holds_no_value(queue: Workplace) -> None:
    secret = "as" + "-it-is"
    done = queue.samestep(
        "submit", "case.yaml", "--time=5", "--run", "one", f"--export=ALL,WANDB_API_KEY={secret},seed", "seed=3"
    )
    assert done.code == 0, done.err
    text = (queue.path / "runs" / "one" / "submitted.json").read_text()
    assert secret not in text
    line = json.loads(text)["line"]
    assert "--export=ALL,WANDB_API_KEY=…,…" in line
    assert line[-1] == "seed=3"
    found = [path for path in queue.path.rglob("*") if path.is_file() and path.suffix != ".pyc" and secret in path.read_text()]
    assert found == []


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        (["--export", "KEY=x"], ["--export", "KEY=…"]),
        (["--export=KEY=x,y=z"], ["--export=KEY=…,y=…"]),
        (["--export=KEY='x,secret'"], ["--export=KEY=…,…"]),
        (["--export=KEY=x,secret value=3"], ["--export=KEY=…,…"]),
        (["--export=PATH,NONE"], ["--export=PATH,NONE"]),
        (["--time=5", "with.key=a,b"], ["--time=5", "with.key=a,b"]),
    ],
)
def test_variables_are_shown_by_their_names(typed: list[str], shown: list[str]) -> None:
    assert _without_values(["sbatch", *typed]) == ["sbatch", *shown]


def test_a_file_of_keys_is_none_of_the_sources_of_a_package(tmp_path: Path) -> None:
    """Nothing here looks like a secret to the scan, or a submitted job would lack it."""
    from conftest import ROOT
    from samestep.run.sensitive import why_secret

    sources = [path for folder in ("src", "configs", "examples", "tests") for path in (ROOT / folder).rglob("*.py")]
    assert {str(path): why for path in sources if (why := why_secret(path))} == {}
