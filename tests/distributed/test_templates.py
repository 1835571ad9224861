"""What `samestep new --like` writes trains at once, on made-up rows or on a folder's, and keeps three parts of them apart."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from ranks import Ranks

from conftest import ROOT
from samestep.commands.new import LIKES, new
from samestep.config import load_config
from samestep.task.loading import load_task

SMALL = {"images": ["with.width=8"], "contrastive": ["with.width=8"], "text": ["with.width=32"]}


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    made = Ranks("transformers")
    yield made
    made.close()


def test_there_are_as_many_as_are_named() -> None:
    assert sorted(LIKES) == sorted(path.stem for path in (ROOT / "templates").glob("*.py"))


@pytest.mark.parametrize("like", LIKES)
def test_a_template_trains_at_once_and_its_test_is_not_its_validation(
    tmp_path: Path, ranks: Ranks, monkeypatch: pytest.MonkeyPatch, like: str
) -> None:
    def samestep(command: str, *words: str, size: int = 1) -> str:
        job = {"folder": str(tmp_path), "name": "said", "world_size": size, "command": command, "words": words}
        answer = ranks.ask(job)
        assert set(answer["codes"]) == {0}, answer["said"]
        return str(answer["said"][0][0])

    monkeypatch.chdir(tmp_path)
    assert new("my-own", like) == "wrote my-own.py and my-own.yaml; next: samestep train my-own.yaml"
    words = [*SMALL.get(like, []), "epochs=null", "steps=10", "evaluate.batches=2", "track={every: 1, wandb: 'off'}"]
    samestep("train", "my-own.yaml", "--run", "first", "schedule=constant", *words, size=2)
    rows = [json.loads(line) for line in (tmp_path / "runs/first/metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    found = json.loads(samestep("evaluate", "first", "--data", "test", "--json"))
    assert found["step"] == 10
    assert found["loss"] != rows[-1]["eval_loss"]


def write_folder(folder: Path, like: str) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    if like in ("images", "contrastive"):
        for number in range(40):
            file = folder / ("cat", "dog", "owl")[number % 3] / f"{number}.png"
            file.parent.mkdir(exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(file)
    elif like in ("text", "lora"):
        for number in range(3):
            (folder / f"{number}.txt").write_text(" ".join(map(str, rng.integers(0, 1000, 900))))
    else:
        columns = ("text", "label") if like == "transformers" else ("a", "b", "c", "d", "y")
        with (folder / "rows.csv").open("w") as table:
            write = csv.writer(table)
            write.writerow(columns)
            for number in range(40):
                write.writerow([f"text {number}", number % 2] if like == "transformers" else rng.random(5).tolist())


def as_numbers(row: Any) -> bytes:
    return b"".join(np.asarray(value).tobytes() for _, value in sorted(row.items()))


@pytest.mark.parametrize("like", LIKES[1:])
def test_a_template_reads_a_folder_and_no_row_is_in_two_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, like: str
) -> None:
    monkeypatch.chdir(tmp_path)
    new(f"my-{like}", like)
    write_folder(tmp_path / "own", like)
    config, _ = load_config(f"my-{like}.yaml", ["with.folder=own"])
    task = load_task(config.task, config.fields)
    parts = []
    for split in ("train", "eval", "test"):
        found: Any = task.data(split)
        rows = (
            [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]
            if isinstance(found, dict)
            else found
        )
        for row in rows[:3]:
            task.transform(row, np.random.default_rng(0))
        parts.append({as_numbers({key: value for key, value in row.items() if key != "augment"}) for row in rows})
        assert len(parts[-1]) == len(rows)
    assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]
    assert len(parts[0]) > 6 * len(parts[1]) > 0 < len(parts[2])
