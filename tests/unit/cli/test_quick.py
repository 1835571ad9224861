"""What needs no torch waits for none: a command that only looks, or has nothing to do, imports little.

Counted, not timed: the modules that a process has imported when it ends.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from samestep.config import load_config, to_text
from samestep.run.folder import RunFolder

HEAVY = {"torch", "numpy", "accelerate", "datasets", "wandb", "transformers", "pandas"}
COUNTED = f"""
import atexit, sys
atexit.register(lambda: print("imported:", len(sys.modules), *({HEAVY!r} & set(sys.modules)), file=sys.stderr))
from samestep.cli import main
main()
"""
MOST_MODULES = 400  # torch alone brings a thousand; pydantic, with what it reads a config by, some hundred and fifty


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a run that is done, a sweep of one such, and a file."""
    folder = RunFolder(tmp_path / "runs/first")
    folder.create()
    config, origins = load_config("seed", ("epochs=null", "steps=10", "micro_batch_size=16"))
    folder.config.write_text(to_text(config, origins))
    folder.state.write_text(json.dumps({"status": "done", "step": 10, "num_steps": 10, "weights": "f" * 64, "wandb": "x"}))
    shutil.copytree(folder.path, tmp_path / "runs/seed-grid-steps=10")
    (tmp_path / "grid.yaml").write_text("steps: [10]\n")
    (tmp_path / "there.safetensors").touch()
    return tmp_path


RUN = ("seed", "--run", "first", "epochs=null", "steps=10", "micro_batch_size=16")
DONE = f"first is done already, at step 10\nweights {'f' * 64}\n"


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--help",), 0, "Usage: "),
        (("status",), 0, "first               done   10/10"),
        (("status", "first"), 0, "first  done   10/10"),
        (("train", *RUN), 0, DONE),
        (("launch", *RUN), 0, DONE),
        (("launch", *RUN, "--processes", "2"), 0, DONE),
        (("sweep", "seed", "grid.yaml", "epochs=null", "micro_batch_size=16"), 0, "1 runs, 1 done already"),
        (("train", *RUN, "seed=1"), 2, "samestep: seed: the run has 0, found 1; write the same, or another --run NAME\n"),
        (("launch", *RUN, "--processes", "2", "seed=1"), 2, "samestep: seed: the run has 0, found 1; "),
        (("train", "gone.yaml"), 2, "samestep: gone.yaml: found no such config; "),
        (("evaluate", "frist"), 2, "samestep: frist: found no such run; did you mean first?\n"),
        (("export", "frist", "new.safetensors"), 2, "samestep: frist: found no such run; did you mean first?\n"),
        (("replay", "frist", "--step", "1"), 2, "samestep: frist: found no such run; did you mean first?\n"),
        (("export", "first", "there.safetensors"), 2, "samestep: there.safetensors: it is there already; write another path\n"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_command_with_nothing_to_compute_imports_little(place: Path, words: tuple[str, ...], code: int, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", COUNTED, *words], cwd=place, capture_output=True, text=True, timeout=50, check=False
    )
    *lines, imported = done.stderr.splitlines(keepends=True)
    assert done.returncode == code, done.stderr
    assert said in done.stdout + "".join(lines)
    _, number, *heavy = imported.split()
    assert heavy == []
    assert int(number) < MOST_MODULES


@pytest.mark.timeout(60)
def test_a_run_that_is_to_go_on_further_is_not_done_already(place: Path) -> None:
    """Its owner, or what it is asked for, says that there is more to do: then all is looked at."""
    code = """
import sys
from pathlib import Path
from samestep.config import done_already, load_config
from samestep.run.folder import RunFolder
config = lambda steps: load_config("seed", ("epochs=null", f"steps={steps}", "micro_batch_size=16"))[0]
folder = RunFolder(Path("runs/first"))
print(done_already(folder, config(10)) is None, done_already(folder, config(11)) is None)
"""

    def asked() -> str:
        done = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True, timeout=50, check=False)
        return done.stdout + done.stderr

    assert asked() == "False True\n"
    owner = RunFolder(place / "runs/first")
    owner.take("here")
    try:
        assert asked() == "True True\n"
    finally:
        owner.release()
