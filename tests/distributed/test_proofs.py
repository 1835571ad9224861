"""A run of two processes proved on one: what was not computed as its config says is found, and its stretch named."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from ranks import Ranks

from conftest import ROOT
from samestep.checkpoint.reading import manifest_of, read, text_checksum
from samestep.checkpoint.tensors import pieces

TASK = """
import os

import torch
import samestep
from samestep import Task


class Mine(Task):
    def data(self, split):
        if os.environ.get("DATA") == "gone":
            raise FileNotFoundError(2, "No such file", "/nowhere/rows")
        x = torch.linspace(-3, 3, 100 if split == "train" else 20).unsqueeze(1)
        return {"x": x, "y": x.sin()}

    def model(self):
        return torch.nn.Sequential(
            torch.nn.Linear(1, 12), torch.nn.BatchNorm1d(12), torch.nn.Tanh(), torch.nn.Dropout(0.2), torch.nn.Linear(12, 1))

    def loss(self, model, batch):
        out = model(batch["x"])
        if samestep.step() == 7 and os.environ.get("FLIPS_ON", "no") == os.environ.get("RANK"):  # one bit of each number
            out = out + (out.detach().view(torch.int32) ^ (1 << 12)).view(torch.float32) - out.detach()
        if os.environ.get("DRAWS") and samestep.step() == 7:
            out = out * (1 + int.from_bytes(os.urandom(1)) / 1000)
        errors = out - batch["y"]
        return errors.square().sum(), errors.numel()
"""
CONFIG = """
task: mine.py:Mine
global_batch_size: 24
micro_batch_size: 4
steps: 12
optimizer: {name: adamw, lr: 1e-2}
evaluate: {every: 3}
checkpoint: {keep: 1, milestones: 4, minutes: null}
track: {every: 2, wandb: 'off', fingerprint: true}
audit: false
"""


class Place:
    """A folder with a run `first` of 12 steps in it."""

    def __init__(self, path: Path) -> None:
        self.path, self._ranks = path, Ranks()
        (path / "mine.py").write_text(TASK)
        (path / "mine.yaml").write_text(CONFIG)

    def samestep(self, command: str, *words: str, size: int = 1, code: int = 0, **env: str) -> str:
        job = {"folder": str(self.path), "name": "said", "world_size": size, "command": command, "words": words, "env": env}
        answer = self._ranks.ask(job)
        assert code in answer["codes"], answer["said"]
        return "".join(answer["said"][0])

    def copy(self, name: str) -> Path:
        """Of the run, to forge something in."""
        path = self.path / "runs" / name
        shutil.copytree(self.path / "runs/first", path)
        return path

    def close(self) -> None:
        self._ranks.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("prove"))
    made.samestep("train", "mine.yaml", "--run", "first", size=2)
    yield made
    made.close()


def everything(path: Path) -> dict[str, tuple[int, bytes]]:
    files = {str(each.relative_to(path)): each for each in path.rglob("*")}
    return {name: (each.stat().st_mtime_ns, each.read_bytes() if each.is_file() else b"") for name, each in files.items()}


def flip(checkpoint: Path, name: str, file: str = "weights.safetensors") -> None:
    """One bit of a tensor; every checksum is right again, so that none but the training itself tells."""
    saved = read(checkpoint)
    tensors = saved.weights if file.startswith("weights") else saved.optimizer
    tensors[name].view(-1).view(torch.int32)[0] ^= 1 << 9
    (checkpoint / file).write_bytes(b"".join(pieces(tensors)))
    manifest = manifest_of(checkpoint)
    manifest["files"][file] = xxhash.xxh3_128_hexdigest((checkpoint / file).read_bytes())
    manifest["checksum"] = text_checksum({key: value for key, value in manifest.items() if key != "checksum"})
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def edit_row(run: Path, step: int, key: str, value: Any) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    next(row for row in rows if row["step"] == step and (key in row or "loss" in row))[key] = value
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_run_of_two_processes_is_proved_on_one_and_the_proof_is_checked(place: Place) -> None:
    before = everything(place.path / "runs/first")
    said = place.samestep("prove", "first", "--share", "0.3", "--seed", "5")
    assert "first: 3 stretches, 12 steps; 1 drawn from 3 by --seed 5\n" in said
    assert "would have stayed unseen with 66.7%, 2 with 33.3%; with 95% certainty no more than 2 of them are wrong" in said
    whole = place.samestep("prove", "first", "--stretch", "0-12")
    for stretch, rows in (("1 to 4", 3), ("5 to 8", 3), ("9 to 12", 4)):  # with those of the evaluations of steps 3, 6, 9, 12
        assert f"steps {stretch}: the same bits, {rows} rows and the state at the end" in whole
    assert "3 of 3 stretches, 12 of 12 steps, 10 of 10 rows\n" in whole
    assert everything(place.path / "runs/first") == before
    proof = json.loads((place.path / "runs/first.proof.json").read_text())
    state = json.loads((place.path / "runs/first/state.json").read_text())
    assert proof["links"][-1]["weights"] == state["weights"]
    assert [len(check["stretches"]) for check in proof["checks"]] == [1, 3]
    assert said.splitlines()[-1] == whole.splitlines()[-1] == f"proof {proof['links'][-1]['chain']}"

    checked = place.samestep("prove", "--check", "runs/first.proof.json", "first", "--again")
    assert "steps 9 to 12: the same bits" in checked
    moved = place.copy("moved")
    shutil.copy(place.path / "mine.py", place.path / "kept.py")
    (place.path / "mine.py").unlink()  # then the run's own copy is trained
    try:
        before = everything(moved)
        place.samestep("prove", "--check", "runs/first.proof.json", "moved", "--again")
        assert everything(moved) == before
    finally:
        os.rename(place.path / "kept.py", place.path / "mine.py")
    edit_row(moved, 6, "loss", 0.5)
    said = place.samestep("prove", "--check", "runs/first.proof.json", "moved", code=1)
    assert "moved is not what runs/first.proof.json has: the rows up to step 8, from the checkpoint before, are others" in said


def test_a_flipped_bit_of_a_checkpoint_is_found_from_both_sides(place: Place) -> None:
    run = place.copy("flipped")
    flip(run / "checkpoints/step-00000008", "4.weight")
    said = place.samestep("prove", "flipped", "--stretch", "0-12", code=1)
    assert "steps 1 to 4: the same bits" in said
    assert "steps 5 to 8: all 3 rows are as recorded, and the checkpoint of step 8 is not (4.weight): it was changed" in said
    assert "steps 9 to 12: step 9: eval_loss was recorded as" in said
    assert "since step 8, where it begins, or the checkpoint of step 8 was changed or swapped" in said
    assert "flipped is not what its config comes to: 2 of 3 stretches trained again are not as recorded" in said
    assert not (place.path / "runs/flipped.proof.json").exists()

    moments = place.copy("moments")
    flip(moments / "checkpoints/step-00000008", "state.0.exp_avg", "optimizer.safetensors")
    said = place.samestep("prove", "moments", "--stretch", "4-8", code=1)
    assert "the checkpoint of step 8 is not (the optimizer's state.0.exp_avg)" in said


def test_rows_that_were_not_earned_are_named(place: Place) -> None:
    run = place.copy("edited")
    edit_row(run, 6, "loss", 0.5)
    edit_row(run, 9, "eval_loss", 0.001)
    edit_row(run, 10, "accuracy", 0.99)
    said = place.samestep("prove", "edited", "--stretch", "4-12", code=1)
    assert "steps 5 to 8: step 6: loss was recorded as 0.5 and is " in said
    assert "That row was not earned: the state after step 8 is right" in said
    assert "steps 9 to 12: step 9: eval_loss was recorded as 0.001 and is " in said
    assert "That row and 1 more were not earned: the state after step 12 is right" in said
    edit_row(run, 10, "step", 11)
    assert "2 of 3 stretches" not in place.samestep("prove", "edited", "--stretch", "0-4")


def test_a_swapped_checkpoint_is_found(place: Place) -> None:
    place.samestep("train", "mine.yaml", "--run", "other", "seed=1")
    for step in (8, 12):
        swapped = place.copy(f"swapped-{step}") / f"checkpoints/step-{step:08d}"
        shutil.rmtree(swapped)
        shutil.copytree(place.path / f"runs/other/checkpoints/step-{step:08d}", swapped)
    said = place.samestep("prove", "swapped-8", "--stretch", "4-8", code=1)
    assert "the checkpoint of step 8 is not (0.bias, 0.weight and " in said
    said = place.samestep("prove", "swapped-12", code=1)
    assert "the checkpoint of step 12 is not the run's last" in said
    shutil.rmtree(swapped)
    shutil.copytree(place.path / "runs/first/checkpoints/step-00000008", swapped)
    assert "holds step 8, and not 12" in place.samestep("prove", "swapped-12", code=1)


def test_one_corrupted_step_is_found_in_its_stretch_and_in_no_other(place: Place) -> None:
    place.samestep("train", "mine.yaml", "--run", "corrupted", size=2, FLIPS_ON="1")
    said = place.samestep("prove", "corrupted", "--share", "1", code=1)
    assert "steps 1 to 4: the same bits" in said
    assert "steps 5 to 8: step 8: loss was recorded as" in said
    assert "A step was computed wrongly since step 6, the row before" in said
    assert "steps 9 to 12: the same bits" in said  # from what the wrong step led to, all is right


def test_where_nothing_can_be_told_it_is_said(place: Place) -> None:
    place.samestep("train", "mine.yaml", "--run", "last", "checkpoint.milestones=null")
    said = place.samestep("prove", "last", code=2)
    assert "its checkpoints leave nothing to draw from but most of the run in one piece; --stretch 0-12 trains that" in said
    assert "steps 1 to 12: the same bits, 10 rows" in place.samestep("prove", "last", "--stretch", "0-12")
    assert "cannot be trained here: FileNotFoundError" in place.samestep("prove", "first", code=2, DATA="gone")
    said = place.samestep("prove", "first", "--stretch", "4-8", code=2, DRAWS="1")
    assert "steps 5 to 8, trained twice here, came out in two ways" in said
    state = json.loads((place.copy("elsewhere") / "state.json").read_text())
    for path in (place.path / "runs/elsewhere/checkpoints").glob("*/values.json"):
        values = json.loads(path.read_text())
        path.write_text(json.dumps({**values, "kind": {**values["kind"], "capability": "AVX9"}}))
        manifest = manifest_of(path.parent)
        manifest["files"]["values.json"] = xxhash.xxh3_128_hexdigest(path.read_bytes())
        manifest["checksum"] = text_checksum({key: value for key, value in manifest.items() if key != "checksum"})
        (path.parent / "manifest.json").write_text(json.dumps(manifest))
    said = place.samestep("prove", "elsewhere", code=2)
    assert f"another kind of device (capability was AVX9 and is {state['kind']['capability']})" in said
    (place.path / "runs/elsewhere/checkpoints/step-00000008/values.json").write_text("{}")
    assert "values.json is damaged" in place.samestep("prove", "elsewhere", code=1)


def test_the_lines_of_the_document_work(place: Place) -> None:
    (lines,) = re.findall(r"^```bash\n(.*?)^```", (ROOT / "docs/prove.md").read_text(), re.DOTALL | re.MULTILINE)
    shutil.copytree(ROOT / "configs", place.path / "configs")
    for line in lines.splitlines():
        program, command, *words = shlex.split(line.replace("first", "shown"), comments=True)
        assert program == "samestep"
        said = place.samestep(command, *words)
    assert "8 of 8 stretches, 40 of 40 steps" in said
