"""The wheel alone is enough: what docs/start.md types works where it is installed, in a folder that has nothing else."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from conftest import ROOT, Finished, Workplace
from samestep.commands.init import init
from samestep.slurm.submit import submit

QUICK = ("track.wandb=off", "evaluate.batches=1")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The environment that has the wheel, and of the tests' own the other packages, but not its samestep."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = [*pip, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", str(folder), str(ROOT)]
    subprocess.run(build, check=True, timeout=100)
    environment = folder / "environment"
    venv.create(environment, symlinks=True)
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (wheel,) = folder.glob("samestep-*.whl")
    install = ["--python", str(environment / "bin/python"), "install", "--no-deps", "--no-index", "--no-compile", str(wheel)]
    subprocess.run([*pip, *install], check=True, timeout=100)
    return environment


@pytest.fixture
def anywhere(workplace: Workplace, installed: Path) -> Workplace:
    workplace.env["PATH"] = f"{installed}/bin:{workplace.env['PATH']}"
    workplace.env.pop("VIRTUAL_ENV", None)
    return workplace


def typed(workplace: Workplace, *words: str) -> Finished:
    done = workplace.command(*words)
    assert done.code == 0, done.out + done.err
    return done


def test_the_wheel_s_version_is_told_without_torch_in_a_moment(anywhere: Workplace, installed: Path) -> None:
    import accelerate
    import torch

    import samestep

    began = os.times()
    said = typed(anywhere, "samestep", "--version").out.splitlines()
    used_s = os.times().children_user - began.children_user
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA in this torch build"
    assert said == [
        f"samestep {samestep.__version__}",
        f"Python {sys.version.partition(' ')[0]}",
        f"torch {torch.__version__}",
        f"accelerate {accelerate.__version__}",
        cuda,
    ]
    assert used_s < 1, "torch takes several times as long"
    where = typed(anywhere, "python", "-c", "import samestep; print(samestep.__file__)").out
    assert Path(where.strip()).is_relative_to(installed)


def test_a_first_task_trains_on_two_processes(anywhere: Workplace) -> None:
    assert typed(anywhere, "samestep", "new", "mine").out.startswith("wrote mine.py and mine.yaml")
    done = typed(anywhere, "samestep", "launch", "mine.yaml", "--processes", "2", "--run", "first", "epochs=1", *QUICK)
    assert anywhere.state("first")["world_size"] == 2
    assert done.weights == anywhere.state("first")["weights"]


def test_what_is_laid_out_trains_by_its_scripts_and_is_never_overwritten(anywhere: Workplace, installed: Path) -> None:
    assert typed(anywhere, "samestep", "init", "here").out.endswith("next: bash here/launch/local.sh\n")
    for name in (
        "launch/local.sh",
        "launch/debug.sh",
        "slurm/train.sbatch",
        "slurm/sweep.sbatch",
        "configs/accelerate/cpu.yaml",
    ):
        assert (anywhere.path / "here" / name).read_text() == (ROOT / name).read_text()
    config = anywhere.path / "here/configs/seed.yaml"
    config.write_text(config.read_text().replace("epochs: 10", "epochs: 1"))
    again = anywhere.command("samestep", "init", "here")
    assert again.code == 2
    assert again.err.startswith("samestep: here/launch/debug.sh, here/launch/local.sh, ")
    anywhere.env["PATH"] = os.environ["PATH"]  # the scripts know the Python that laid them out
    done = typed(anywhere, "bash", "here/launch/debug.sh", str(config), "--run", "debugged", "track.wandb=off")
    assert anywhere.state("debugged")["step"] == 4
    assert done.weights
    assert not (anywhere.path / "here/.venv").exists()
    anywhere.env["PYTHON"] = "/usr/bin/env"
    lacking = anywhere.command("bash", "here/launch/local.sh")
    assert (lacking.code, lacking.err.partition("; ")[0]) == (2, "samestep: found no samestep in /usr/bin/env")


def test_the_demo_and_the_configs_by_name_come_along(anywhere: Workplace) -> None:
    typed(anywhere, "samestep", "launch", "--processes", "1", "--run", "demo", "steps=3", *QUICK, "with.width=16")
    config = (anywhere.path / "runs/demo/config.yaml").read_text()
    assert "# samestep's stdlib\ntask: text\n" in config
    assert "# command line\nsteps: 3\n" in config
    lost = anywhere.command("samestep", "train", "nothing")
    assert lost.code == 2
    assert lost.err.endswith("one that comes with samestep: digits, gpt2-124m, seed, stdlib\n")
    anywhere.write("stdlib", "task: [\n")
    ours = anywhere.command("samestep", "train", "stdlib")
    assert ours.err.startswith("samestep: stdlib line ")  # a file of one's own goes first


@pytest.fixture
def sbatch(workplace: Workplace) -> Path:
    stub = workplace.path / "bin/sbatch"
    stub.parent.mkdir()
    stub.write_text("#!/bin/sh\n")
    stub.chmod(stub.stat().st_mode | stat.S_IXUSR)
    return stub.parent


DRY_RUN = ("--time=5", "--dry-run")


def test_submit_finds_its_batch_script_and_the_python_of_the_wheel(anywhere: Workplace, installed: Path, sbatch: Path) -> None:
    anywhere.env["PATH"] = f"{sbatch}:{anywhere.env['PATH']}"
    said = typed(anywhere, "samestep", "submit", "seed", *DRY_RUN).out
    script = re.search(r"^# (/.*train\.sbatch)$", said, re.MULTILINE)
    assert script is not None
    assert Path(script[1]).is_relative_to(installed)
    assert f"PYTHON={installed}/bin/python" in said


def test_submit_prefers_the_script_that_was_laid_out_and_changed(
    workplace: Workplace, sbatch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace.path)
    monkeypatch.setenv("PATH", f"{sbatch}:{os.environ['PATH']}")
    init(".")
    batch = workplace.path / "slurm/train.sbatch"
    batch.write_text(batch.read_text() + "# changed here\n")
    said = submit("configs/seed.yaml", DRY_RUN[:1], None, None, 1, dry_run=True)
    assert said.endswith("# changed here\n")
    assert f"SAMESTEP_ROOT={workplace.path} " in said
    assert f"PYTHON={sys.executable} " in said
