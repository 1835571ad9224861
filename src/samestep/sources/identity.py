"""What tells one data set from another: the number of its rows, their columns and format, a checksum of their values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import xxhash

from samestep.sources.reading import read_some
from samestep.sources.source import HEAD_ROWS, SLICE_ROWS, SLICES, WHOLE_BYTES, Source, is_dataset
from samestep.sources.tokens import Tokens

if TYPE_CHECKING:
    import datasets

Identity = dict[str, Any]

_SOURCE_ROWS = 16  # of what is read row by row, each at its own cost


def identity(dataset: Any, apart: bool = False) -> Identity:
    """The data's identity, for JSON.

    Args:
        apart: read rows of a source in a process of its own: loader processes would share a file that it opens here.

    It speaks of the rows as `dataset[i]` numbers them, not of how they are kept: in memory or mapped from a file, in few
    chunks or many, in their own order or behind the row numbers that shuffle() and select() lay over a table.
    """
    if isinstance(dataset, Source):
        return dataset.identity(apart)
    if not is_dataset(dataset):
        return _of_source(dataset, apart)
    whole = _fits(dataset)
    digest, head = xxhash.xxh3_128(), xxhash.xxh3_128()
    for name, values in _whole(dataset) if whole else _sample(dataset):
        digest.update(name.encode())
        _add(digest, values)
    table = dataset.with_format("arrow")[:HEAD_ROWS]
    for name, values in zip(table.column_names, map(_joined, table.columns), strict=True):
        head.update(name.encode())
        _add(head, values)
    return {
        "rows": len(dataset),
        "columns": [f"{name}: {dataset.features[name]}" for name in dataset.column_names],
        "format": _format(dataset),
        "checksum": digest.hexdigest(),
        "head": head.hexdigest(),
        "whole": whole,
        "fingerprint": dataset._fingerprint,
    }


def _of_source(source: Any, apart: bool) -> Identity:
    """That of anything with `__len__` and `__getitem__`: a checksum of some rows, from the first to the last."""
    first = list(range(min(HEAD_ROWS, len(source))))
    numbers = [*first, *np.unique(np.linspace(len(first), len(source) - 1, _SOURCE_ROWS).astype(int)).tolist()]
    numbers = [number for number in numbers if number < len(source)]
    rows = read_some(source, numbers, apart)
    digest, head = xxhash.xxh3_128(), xxhash.xxh3_128()
    for row in rows:
        _add_value(digest, row)
    known = [_add_value(head, row) for row in rows[: len(first)]]
    columns = rows[0] if isinstance(rows[0], Mapping) else {"row": rows[0]}
    return {
        "rows": len(source),
        "columns": [f"{name}: {type(value).__name__}" for name, value in columns.items()],
        "format": _kind(source),
        "checksum": digest.hexdigest(),
        "head": head.hexdigest() if all(known) else "",
        "whole": False,
        "fingerprint": "",
    }


def _kind(source: Any) -> str:
    """What a source's class is called; `Tokens` as in the checkpoints from before it lay where it does."""
    kind = type(source)
    return "samestep.batches.tokens.Tokens" if kind is Tokens else f"{kind.__module__}.{kind.__qualname__}"


def _add_value(digest: Any, value: Any) -> bool:
    """Whether all of it was added: an image of some library's, say, has no bytes that are known to stay the same."""
    if isinstance(value, Mapping):
        value = list(value.items())
    if isinstance(value, (list, tuple)):
        digest.update(len(value).to_bytes(8, "little"))
        known = [_add_value(digest, part) for part in value]
        return all(known)
    if isinstance(value, (str, bytes)):
        digest.update(value if isinstance(value, bytes) else value.encode())
    elif isinstance(value, torch.Tensor):
        plain = value.detach().cpu().contiguous()
        digest.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    elif hasattr(value, "__array__"):
        found = np.asarray(value)
        if found.dtype == object:  # whose bytes are places in memory
            return _add_value(digest, found.tolist())
        digest.update(f"{found.dtype}{found.shape}".encode())
        digest.update(np.ascontiguousarray(found).tobytes())
    elif isinstance(value, (bool, int, float, complex, type(None))):
        digest.update(repr(value).encode())
    else:
        return False
    return True


def _format(dataset: datasets.Dataset) -> str:
    form = dataset.format
    words = [form["type"] or "none"]
    if set(form["columns"]) != set(dataset.column_names):
        words.append(f"of {', '.join(sorted(form['columns']))}{' beside the others' if form['output_all_columns'] else ''}")
    options = [f"{name}={value}" for name, value in sorted(form["format_kwargs"].items()) if name != "transform"]
    return " ".join(words + options)


def _fits(dataset: datasets.Dataset) -> bool:
    table = dataset.data.table
    seen = table.nbytes * len(dataset) / max(1, table.num_rows)
    return bool(max(table.nbytes, seen) <= WHOLE_BYTES)


def _whole(dataset: datasets.Dataset) -> Iterator[tuple[str, pa.Array]]:
    rows = None if dataset._indices is None else _joined(dataset._indices.column(0))
    for name in dataset.column_names:
        values = _joined(dataset.data.column(name))
        yield name, values if rows is None else _taken(values, rows)


def _taken(values: pa.Array, rows: pa.Array) -> pa.Array:
    """The rows of an array. Arrow is faster at lists of one length when their type says so."""
    kind = values.type
    if (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and len(values) and not values.null_count:
        length = len(values[0])
        if length and pc.all(pc.equal(pc.list_value_length(values), length)).as_py():
            values = pa.FixedSizeListArray.from_arrays(values.flatten(), length)
    try:
        return values.take(rows)
    except pa.ArrowNotImplementedError:  # views of strings, for one
        return pa.concat_arrays([values.slice(row, 1) for row in rows.to_pylist()])


def _sample(dataset: datasets.Dataset) -> Iterator[tuple[str, pa.Array]]:
    tables = dataset.with_format("arrow")
    starts = np.linspace(0, max(0, len(dataset) - SLICE_ROWS), SLICES).astype(int)
    for start in np.unique(starts).tolist():
        table = tables[start : start + SLICE_ROWS]
        yield from zip(table.column_names, map(_joined, table.columns), strict=True)


def _joined(column: pa.ChunkedArray) -> pa.Array:
    chunks = [chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk for chunk in column.chunks]
    if len(chunks) == 1:
        return chunks[0]
    return pa.concat_arrays(chunks) if chunks else pa.array([], pa.null())


def _add(digest: Any, array: pa.Array) -> None:
    """Add an array's values to a checksum: those alone, since what lies in its buffers beside them is anybody's.

    (Arrow's own serialization writes a part of a table with some bytes of the rows after it.)
    """
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    kind = array.type
    digest.update(len(array).to_bytes(8, "little"))
    if array.null_count:
        digest.update(np.packbits(array.is_null().to_numpy(zero_copy_only=False)))
    if pa.types.is_struct(kind):
        for part in array.flatten():
            _add(digest, part)
        return
    if pa.types.is_nested(kind) and not (pa.types.is_union(kind) or pa.types.is_map(kind)):
        digest.update(pc.list_value_length(array).fill_null(0).cast(pa.int64()).to_numpy())
        _add(digest, array.flatten())
        return
    if _is_text(kind):
        array = array.cast(pa.large_binary())
    if array.null_count:
        array = array.drop_null()
    if pa.types.is_boolean(kind):
        digest.update(array.to_numpy(zero_copy_only=False))
    elif pa.types.is_primitive(kind) or pa.types.is_fixed_size_binary(kind) or pa.types.is_decimal(kind):
        size = kind.bit_width // 8
        _add_bytes(digest, array.buffers()[1], array.offset * size, len(array) * size)
    elif _is_text(kind):
        digest.update(pc.binary_length(array).cast(pa.int64()).to_numpy())
        ends = np.frombuffer(array.buffers()[1], np.int64)[array.offset :][: len(array) + 1] if len(array) else [0, 0]
        _add_bytes(digest, array.buffers()[2], int(ends[0]), int(ends[-1] - ends[0]))
    elif not pa.types.is_null(kind):
        digest.update(repr(array.to_pylist()).encode())


def _add_bytes(digest: Any, buffer: pa.Buffer | None, start: int, size: int) -> None:
    if buffer is not None and size:
        digest.update(buffer.slice(start, size))


def _is_text(kind: pa.DataType) -> bool:
    names = ("string", "binary", "large_string", "large_binary", "string_view", "binary_view")
    return str(kind) in names
