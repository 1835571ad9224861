"""Learn to continue text, byte by byte: on the standard library's source, which every machine has, or on your files."""

from __future__ import annotations

import math
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
import xxhash
from pydantic import PositiveInt, model_validator
from torch.nn import functional as F

from samestep.errors import UsageError
from samestep.task import Batch, Ratio, Task
from samestep.tasks.gpt import GPT

if TYPE_CHECKING:
    import datasets

_TABLES = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
_HELD_OUT = 20  # one document in so many is for evaluation
_FORMAT = 1


class Text(Task):
    """A byte-level GPT on packed documents.

    `source` is empty for the standard library; a glob of text files (one document each); of json, csv or parquet files
    with a text column; the folder of a saved data set; or, where there is a network, a data set's name on the hub.
    """

    unit: ClassVar[str] = "bytes"

    source: str = ""
    column: str = "text"
    context: PositiveInt = 64
    width: PositiveInt = 128
    layers: PositiveInt = 2
    heads: PositiveInt = 4
    dropout: float = 0.0
    prompt: str = "def "
    shown: int = 300

    @model_validator(mode="after")
    def _heads_divide(self) -> Text:
        if self.width % self.heads:
            raise ValueError(f"with.heads: found {self.heads}, which does not divide width ({self.width})")
        return self

    def data(self, split: str) -> datasets.Dataset | None:
        """One column, `tokens`: context + 1 bytes a row, of which neighbours share one."""
        import datasets

        folder = self._prepared()
        return datasets.load_from_disk(str(folder / split))

    def model(self) -> GPT:
        return GPT(self.context, self.width, self.layers, self.heads, self.dropout)

    def loss(self, model: torch.nn.Module, batch: Batch) -> Ratio:
        tokens = batch["tokens"].long()
        logits = model(tokens[:, :-1])
        targets = tokens[:, 1:].reshape(-1)
        return F.cross_entropy(logits.reshape(-1, logits.shape[-1]).float(), targets, reduction="sum"), targets.numel()

    def metrics(self, model: torch.nn.Module, batch: Batch) -> dict[str, Ratio]:
        nats, count = self.loss(model, batch)
        return {"loss": (nats, count), "bits_per_byte": (nats / math.log(2), count)}

    def show(self, model: torch.nn.Module) -> str:
        if not isinstance(model, GPT) or not self.shown:
            return ""
        generator = torch.Generator().manual_seed(0)
        return model.generate(self.prompt.encode(), self.shown, generator).decode(errors="replace")

    def _prepared(self) -> Path:
        """The packed documents, kept in the cache of `datasets` under a name made of all that goes into them."""
        import datasets

        parts = [f"{_FORMAT} {self.source} {self.column} {self.context}"]
        # The standard library changes with the interpreter alone, and looking at each of its files takes a second.
        parts += [self._stamp(file) for file in self._files()] if self.source else [sys.version, sysconfig.get_path("stdlib")]
        stamp = "|".join(parts)
        name = f"samestep-text-{xxhash.xxh3_64_hexdigest(stamp.encode())}"
        folder = Path(datasets.config.HF_DATASETS_CACHE) / name
        if not (folder / "eval" / "state.json").exists():
            for split, rows in self._pack(self._documents(self._files())).items():
                _save(rows, folder / split)
        return folder

    @staticmethod
    def _stamp(file: Path) -> str:
        status = file.stat()
        return f"{file} {status.st_size} {status.st_mtime_ns}"

    def _files(self) -> list[Path]:
        if not self.source:
            library = Path(sysconfig.get_path("stdlib"))
            left_out = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib2to3"}
            return sorted(f for f in library.rglob("*.py") if not left_out & set(f.relative_to(library).parts))
        path = Path(self.source).expanduser()
        if path.is_dir():
            return sorted(file for file in path.rglob("*") if file.is_file())
        if path.is_file():
            return [path]
        *parents, _pattern = path.parts
        anchor = next((i for i, part in enumerate(path.parts) if any(sign in part for sign in "*?[")), len(parents))
        root = Path(*path.parts[:anchor]) if anchor else Path()
        return sorted(f for f in root.glob(str(Path(*path.parts[anchor:]))) if f.is_file()) if root.is_dir() else []

    def _documents(self, files: list[Path]) -> Iterator[bytes]:
        import datasets

        saved = (Path(self.source) / "dataset_info.json").exists() if self.source else False
        kinds = {_TABLES.get(file.suffix) for file in files}
        if saved:
            rows = datasets.load_from_disk(self.source)
        elif not files:
            rows = _from_hub(self.source)
        elif None not in kinds and len(kinds) == 1:
            rows = datasets.load_dataset(str(kinds.pop()), data_files=[str(file) for file in files], split="train")
        else:
            for file in files:
                yield file.read_bytes()
            return
        if self.column not in rows.column_names:
            raise UsageError(f"with.column: {self.source} has no column {self.column!r}; it has {', '.join(rows.column_names)}")
        for row in rows.select_columns([self.column]):
            yield row[self.column].encode()

    def _pack(self, documents: Iterator[bytes]) -> dict[str, np.ndarray[tuple[int, int], np.dtype[np.uint8]]]:
        """Documents of each split end to end, a zero byte after each, cut into rows that share their edges."""
        parts: dict[str, list[bytes]] = {"train": [], "eval": []}
        for document in documents:
            held_out = xxhash.xxh3_64_intdigest(document) % _HELD_OUT == 0
            parts["eval" if held_out else "train"].append(document + b"\0")
        packed = {}
        for split, pieces in parts.items():
            stream = np.frombuffer(b"".join(pieces), dtype=np.uint8)
            num_rows = (len(stream) - 1) // self.context
            if num_rows < 1:
                what = self.source or "the standard library"
                raise UsageError(f"with.source: {what} gives {len(stream)} bytes for {split}; write a source with more text")
            starts = np.arange(num_rows)[:, None] * self.context
            packed[split] = stream[starts + np.arange(self.context + 1)]
        return packed


def _from_hub(name: str) -> datasets.Dataset:
    import datasets

    try:
        return datasets.load_dataset(name, split="train")
    except Exception as error:
        raise UsageError(
            f"with.source: found no file {name!r}, and no such data set on the hub ({type(error).__name__}); write a glob "
            "of files, the folder of a saved data set, or a data set's name"
        ) from None


def _save(rows: np.ndarray[tuple[int, int], np.dtype[np.uint8]], folder: Path) -> None:
    """Save rows as one data set with one column, whole or not at all."""
    import datasets
    import pyarrow as pa

    values = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
    table = pa.table({"tokens": values})
    temporary = folder.with_name(f".{folder.name}.tmp")
    datasets.Dataset(datasets.table.InMemoryTable(table)).save_to_disk(str(temporary))
    if not folder.exists():
        temporary.rename(folder)
