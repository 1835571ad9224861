"""What docs/your-model.md, docs/data.md and docs/coming-from.md show is run, or is a piece of an example that is."""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ranks import Ranks

from conftest import ROOT


def blocks(document: str, language: str) -> list[str]:
    text = (ROOT / "docs" / document).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.fixture
def ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ranks]:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))  # what is kept there goes with the test's folder
    made = Ranks()
    yield made
    made.close()


def bare(text: str) -> str:
    """Its lines without indentation and blank ones, which a formatter sets in a document in its own way."""
    return "".join(f"{line.strip()}\n" for line in text.splitlines() if line.strip())


def test_what_coming_from_shows_stands_in_the_examples() -> None:
    files = [bare(path.read_text()) for path in sorted((ROOT / "examples/coming_from").glob("*.py"))]
    shown = [bare(block) for block in blocks("coming-from.md", "python")]
    assert len(shown) == 8
    for block in shown:
        assert any(block in text for text in files), block


def test_your_model_works_line_by_line_and_piece_by_piece(tmp_path: Path, ranks: Ranks) -> None:
    def samestep(command: str, *words: str) -> None:
        job = {"folder": str(tmp_path), "name": "said", "world_size": 1, "command": command, "words": words}
        answer = ranks.ask(job)
        assert answer["codes"] == [0], answer["said"]

    def metrics(run: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (tmp_path / "runs" / run / "metrics.jsonl").read_text().splitlines()]

    (lines,) = blocks("your-model.md", "bash")
    for line in lines.splitlines():
        program, command, *words = shlex.split(line, comments=True)
        assert program == "samestep"
        samestep(command, *words)
    assert metrics("first")[-1]["eval_accuracy"] > 0.9
    assert (tmp_path / "first.safetensors").exists()

    with (tmp_path / "points.csv").open("w") as file:
        csv.writer(file).writerows([("left", "up", "arm"), *((n / 50, -n / 50, n % 3) for n in range(100))])
    for block in blocks("your-model.md", "python"):
        name = block.splitlines()[0].removeprefix("# ")
        (tmp_path / name).write_text(block)
        task = re.findall(r"^class (\w+)", block, re.MULTILINE)[-1]
        config = [name] if "samestep.main" in block else ["mine.yaml", f"task={name}:{task}"]
        samestep("train", *config, "--run", name, "epochs=2", "track={every: 1, wandb: 'off'}")
    assert {"eval_arm_0", "eval_arm_1", "eval_arm_2", "eval_accuracy"} <= metrics("measured.py")[-1].keys()
    assert {"error", "size"} <= metrics("two_losses.py")[0].keys()
    assert metrics("again.py")[0]["loss"] != metrics("measured.py")[0]["loss"]
    assert metrics("names.py")[-1]["loss"] < metrics("names.py")[0]["loss"]


def test_each_source_of_data_works_as_it_is_shown(tmp_path: Path, ranks: Ranks) -> None:
    rng = np.random.default_rng(0)
    for split, rows in (("train", 300), ("eval", 40)):
        rng.integers(0, 256, rows * 64 + 1, dtype=np.uint8).tofile(tmp_path / f"{split}.bin")
        tokens = pa.array(rng.integers(0, 256, (rows, 65)).tolist(), pa.list_(pa.uint8()))
        (tmp_path / "shards" / split).mkdir(parents=True)
        pq.write_table(pa.table({"tokens": tokens}), tmp_path / "shards" / split / "0.parquet", row_group_size=20)
        lines = (json.dumps({"tokens": row}) for row in rng.integers(0, 256, (rows, 65)).tolist())
        (tmp_path / f"prose-{split}.jsonl").write_text("\n".join(lines))
    shown = blocks("data.md", "python")
    assert len(shown) == 3
    for block in shown:
        name = block.splitlines()[0].removeprefix("# ")
        (tmp_path / name).write_text(block)
        task = re.findall(r"^class (\w+)", block, re.MULTILINE)[-1]
        words = ["stdlib", f"task={name}:{task}", "--run", name, "evaluate.batches=2", "with={width: 8, layers: 1, shown: 0}"]
        length = ["epochs=1", "steps=null"] if "rows=2000" in block else ["steps=3"]
        job = {"folder": str(tmp_path), "name": "said", "world_size": 1, "words": [*words, *length, "track.wandb=off"]}
        answer = ranks.ask(job)
        assert answer["codes"] == [0], answer["said"]
    assert json.loads((tmp_path / "runs/mixed.py/state.json").read_text())["step"] == 2000 // 32 + 1
