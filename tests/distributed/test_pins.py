"""Pinned bits: what changes a number is named, what changes none is not, and our own examples are what they were."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

import pytest

from conftest import ROOT, Workplace
from samestep.testing import assert_same_bits

pytestmark = pytest.mark.timeout(600)  # each run is a process of its own, of which busy machines take their time
TASK = """
import torch
from samestep import Task


class Mine(Task):
    def data(self, split):
        x = torch.linspace(-3, 3, 300).unsqueeze(1)
        return {"x": x, "y": x.sin()} if split == "train" else None

    def model(self):
        return torch.nn.Sequential(torch.nn.Linear(1, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))

    def loss(self, model, batch):
        errors = model(batch["x"]) - batch["y"]
        return errors.square().sum(), errors.numel()
"""
CONFIG = """
task: mine.py:Mine
global_batch_size: 32
micro_batch_size: 8
epochs: 20
optimizer: {name: adamw, lr: 1e-2}
"""
ANOTHER_ORDER = TASK.replace("errors.square().sum()", "errors.square().flip(0).cumsum(0)[-1].sum()")
REFACTORED = TASK.replace(
    'errors = model(batch["x"]) - batch["y"]', 'guesses = model(batch["x"])\n        errors = guesses - batch["y"]'
)


@pytest.fixture(scope="module")
def pinned_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = Workplace(tmp_path_factory.mktemp("pinned"))
    place.write("mine.py", TASK)
    place.write("mine.yaml", CONFIG)
    done = place.command(sys.executable, "-m", "samestep", "pin", "mine.yaml", "--steps", "4", timeout=500)
    assert done.code == 0, done.err
    assert done.out.startswith("pinned 4 steps in mine.bits.json (cpu, ")
    return place.path


@pytest.fixture
def pinned(workplace: Workplace, pinned_once: Path) -> Workplace:
    for name in ("mine.py", "mine.yaml", "mine.bits.json"):
        shutil.copy(pinned_once / name, workplace.path)
    return workplace


def against(pinned: Workplace, *words: str) -> tuple[int, str]:
    whole = (sys.executable, "-m", "samestep", "verify", "mine.yaml", "--against", "mine.bits.json", *words)
    done = pinned.command(*whole, timeout=500)
    return done.code, done.out + done.err


def test_another_order_of_a_sum_is_seen_and_a_refactoring_is_not(pinned: Workplace) -> None:
    pinned.write("mine.py", REFACTORED)
    same = "nothing has changed: 4 steps of mine.yaml are the bits of mine.bits.json (the code is another (mine.py))\n"
    assert against(pinned, "--processes", "3") == (0, same)
    pinned.write("mine.py", ANOTHER_ORDER)
    code, said = against(pinned)
    assert code == 1
    assert "mine.yaml is not as mine.bits.json has it: step 1 parts first, in loss, which was " in said
    assert said.endswith("; the machine is of the same kind; the code is another (mine.py)\n")


def test_another_kind_of_device_is_compared_within_a_tolerance(pinned: Workplace) -> None:
    pinned.env["ATEN_CPU_CAPABILITY"] = "default"  # kernels without vector instructions
    code, said = against(pinned)
    assert code == 0
    assert said.startswith(
        "within 0.1%: 4 steps of mine.yaml, not compared bit for bit: mine.bits.json has no pin of this kind"
    )
    code, said = against(pinned, "optimizer.lr=2e-2")
    assert code == 1
    assert (
        "mine.yaml: lr of step 1 was 0.01 and is 0.02, more than rounding explains; mine.bits.json has no pin of this" in said
    )
    assert "kind of device (capability was AVX" in said


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git here")
def test_bisecting_names_the_commit_that_changed_the_numbers(pinned: Workplace) -> None:
    """By the line of docs/pin.md: past a commit whose run fails."""

    def git(*words: str) -> str:
        as_one = ("-c", "user.name=one", "-c", "user.email=one@example.org", "-c", "commit.gpgsign=false")
        done = pinned.command("git", *as_one, *words)
        assert done.code == 0, done.out + done.err
        return done.out

    git("init", "-q")
    fails = TASK.replace("numel()", "nummel()")
    for message, text in (("good", TASK), ("fails", fails), ("other", ANOTHER_ORDER), ("bad", ANOTHER_ORDER + "\n")):
        pinned.write("mine.py", text)
        git("add", "mine.py")
        git("commit", "-q", "-m", message)
    (line,) = [line for line in (ROOT / "docs/pin.md").read_text().splitlines() if line.startswith("git bisect run")]
    words = shlex.split(line.replace("/tmp/pinned.json", "mine.bits.json").replace("samestep", f"{sys.executable} -m samestep"))
    git("bisect", "start", "HEAD", "HEAD~3")
    done = pinned.command(*words, timeout=550)
    assert "There are only 'skip'ped commits left to test" in done.out + done.err, done.out + done.err
    assert "there is nothing to compare: on 1 processes the run failed: rank 0" in done.out + done.err
    assert git("log", "--format=%s", "-1", "refs/bisect/bad") == "other\n"


def test_other_bits_fail_a_test_with_what_has_changed(pinned: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pinned.path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(AssertionError, match="config seed was 0 and is 3"):
        assert_same_bits("mine.yaml", "seed=3")


@pytest.mark.parametrize("config", sorted((ROOT / "tests/pins").glob("*.yaml")), ids=lambda path: path.stem)
def test_our_own_examples_are_what_they_were(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a change of numbers is meant: `samestep pin` for each, and a line in CHANGELOG.md."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    print(assert_same_bits(config))
