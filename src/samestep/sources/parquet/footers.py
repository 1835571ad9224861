"""What the footers of Parquet files say: where each row group lies, how many rows it has, what its columns are called."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from samestep.errors import UsageError
from samestep.randomness.order import Integers
from samestep.run.disk import write_atomically
from samestep.sources.parquet.store import START_PATIENCE_S, File, Range, Store

_TAIL_BYTES = 64 * 1024  # in which most footers lie whole
_MAGIC = b"PAR1"
_GAP_BYTES = 2**20  # read along rather than asked around
_PADDING_BYTES = 100  # some writers leave a column's last bytes out of its size, and readers take these along
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}


@dataclass(frozen=True)
class Footers:
    """The row groups of all files that have rows, in order.

    Attributes:
        file_of, number_of, rows, size: (groups,): which file, which group of it, its rows, and the bytes of the chosen columns
            in memory, as far as a footer tells.
        ends: (files,) where each file's footer ends in `tails`, in which they stand one after the other.
        schema: of the chosen columns.
    """

    files: list[File]
    file_of: Integers
    number_of: Integers
    rows: Integers
    size: Integers
    ends: Integers
    tails: NDArray[np.uint8]
    schema: pa.Schema

    def tail(self, place: int) -> bytes:
        """The last bytes of a file, from its metadata on."""
        return self.tails[self.ends[place - 1] if place else 0 : self.ends[place]].tobytes()

    def marks(self) -> list[str]:
        """For each file, what tells it from one of other rows: its size and all that its footer says of them."""
        return [digest(file.size, xxhash.xxh3_64_hexdigest(self.tail(place))) for place, file in enumerate(self.files)]


def read_footers(store: Store, files: list[File], columns: list[str] | None, folder: Path) -> Footers:
    """The footers of files, from `folder` where they have been read before; what was read is kept there.

    Raises UsageError for a file that is none of Parquet's, or has other columns than the first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = digest(*((file.name, file.size, file.version) for file in files), *(columns or ["*"]))
    known, tails = folder / f"{name}.npz", folder / f"{name}.footers"
    if not known.exists():

        def tail_of(file: File) -> bytes:
            return store.patiently(lambda: _tail(store, file), file.name, START_PATIENCE_S)

        found = store.many(tail_of, files)
        buffer = io.BytesIO()
        np.savez(buffer, **_summary(files, found, columns))
        write_atomically(tails, b"".join(found))
        write_atomically(known, buffer.getvalue())
    with np.load(known) as arrays:
        parts: dict[str, Any] = {name: arrays[name] for name in arrays.files}
    schema = pa.ipc.read_schema(pa.py_buffer(parts.pop("schema").tobytes()))
    return Footers(files, schema=schema, tails=np.memmap(tails, np.uint8, mode="r"), **parts)


def _tail(store: Store, file: File) -> bytes:
    tail = store.read(file, max(0, file.size - _TAIL_BYTES), file.size)
    if len(tail) < 12 or tail[-4:] != _MAGIC:
        raise UsageError(f"data: {file.name} is no Parquet file; leave it out of the paths")
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if length + 4 > file.size:
        raise UsageError(f"data: {file.name} is no whole Parquet file; write it anew, or leave it out of the paths")
    return tail[-length:] if length <= len(tail) else store.read(file, file.size - length, file.size)


def metadata(tail: bytes, file: File) -> pq.FileMetaData:
    try:
        return pq.read_metadata(pa.BufferReader(_MAGIC + tail))
    except pa.ArrowException as error:
        raise UsageError(f"data: {file.name} is no whole Parquet file ({error}); write it anew, or leave it out") from None


def fetch(store: Store, file: File, tail: bytes, number: int, columns: list[str]) -> Pieces:
    """The bytes of a row group's columns; what lies near each other is asked for at once."""
    ranges = _ranges(metadata(tail, file).row_group(number), columns, file.size)
    return Pieces([(start, store.read(file, start, stop)) for start, stop in ranges], file.size)


def decode(pieces: Pieces, file: File, tail: bytes, number: int, columns: list[str]) -> pa.Table:
    """A row group's columns, each in one piece where Arrow can have it so."""
    parquet = pq.ParquetFile(pieces, metadata=metadata(tail, file))
    table = parquet.read_row_group(number, columns=columns, use_threads=False).select(columns)
    return table.combine_chunks().replace_schema_metadata(None)


def digest(*parts: object) -> str:
    return xxhash.xxh3_128_hexdigest("\0".join(map(str, parts)).encode())


def _summary(files: list[File], tails: list[bytes], columns: list[str] | None) -> dict[str, Any]:
    groups: list[tuple[int, int, int, int]] = []
    first: tuple[File, pa.Schema] | None = None
    for place, (file, tail) in enumerate(zip(files, tails, strict=True)):
        found = metadata(tail, file)
        if not found.num_rows:
            continue
        schema = _chosen(found.schema.to_arrow_schema(), columns, file)
        first = first or (file, schema)
        _refuse_other_columns(*first, file, schema)
        for number in range(found.num_row_groups):
            group = found.row_group(number)
            if group.num_rows:
                groups.append((place, number, group.num_rows, _size(group, schema.names)))
    if first is None:
        raise UsageError(f"data: {files[0].name}{' and the others' if len(files) > 1 else ''} have no rows; write other paths")
    file_of, number_of, rows, size = np.array(groups, np.int64).T
    schema = np.frombuffer(first[1].serialize(), np.uint8)
    arrays = {"file_of": file_of, "number_of": number_of, "rows": rows, "size": size, "schema": schema}
    return {**arrays, "ends": np.cumsum([len(tail) for tail in tails])}


def _chosen(schema: pa.Schema, columns: list[str] | None, file: File) -> pa.Schema:
    if missing := [name for name in columns or () if name not in schema.names]:
        raise UsageError(f"data: {file.name} has no column {missing[0]}; it has {', '.join(schema.names)}")
    fields = [schema.field(name) for name in columns or schema.names]
    return pa.schema([pa.field(field.name, field.type) for field in fields])


def _refuse_other_columns(first: File, schema: pa.Schema, file: File, other: pa.Schema) -> None:
    only_some = [name for name in [*schema.names, *other.names] if (name in schema.names) != (name in other.names)]
    if only_some:
        has, lacks = (first, file) if only_some[0] in schema.names else (file, first)
        common = [name for name in schema.names if name in other.names]
        raise UsageError(f"data: {has.name} has a column {only_some[0]}, and {lacks.name} has none; write columns={common}")
    for name in schema.names:
        if schema.field(name).type != other.field(name).type:
            one, two = schema.field(name).type, other.field(name).type
            raise UsageError(f"data: column {name} is {one} in {first.name}, and {two} in {file.name}; write it alike in all, "
                             "or leave it out of columns")  # fmt: skip


def _leaves(group: Any, columns: list[str]) -> list[Any]:
    every = [group.column(place) for place in range(group.num_columns)]
    return [
        leaf
        for leaf in every
        if any(leaf.path_in_schema == name or leaf.path_in_schema.startswith(f"{name}.") for name in columns)
    ]


def _size(group: Any, columns: list[str]) -> int:
    return sum(
        max(leaf.total_uncompressed_size, leaf.num_values * _WIDTHS.get(leaf.physical_type, 0))
        for leaf in _leaves(group, columns)
    )


def _ranges(group: Any, columns: list[str], file_size: int) -> list[Range]:
    """Where the columns of a row group lie in the file, those near each other as one."""
    spans = []
    for leaf in _leaves(group, columns):
        start = leaf.data_page_offset
        if leaf.dictionary_page_offset:  # 0 from some writers that have none
            start = min(start, leaf.dictionary_page_offset)
        spans.append((start, min(start + leaf.total_compressed_size + _PADDING_BYTES, file_size)))
    merged: list[Range] = []
    for start, stop in sorted(spans):
        if merged and start <= merged[-1][1] + _GAP_BYTES:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return merged


class Pieces(io.RawIOBase):
    """A file of which some pieces are here."""

    def __init__(self, pieces: list[tuple[int, bytes]], size: int) -> None:
        self._pieces, self._size, self._place = pieces, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._place = offset + (0, self._place, self._size)[whence]
        return self._place

    def tell(self) -> int:
        return self._place

    def read(self, size: int = -1) -> bytes:
        for start, piece in self._pieces:
            if start <= self._place < start + len(piece):
                found = piece[self._place - start :][: size if size >= 0 else None]
                self._place += len(found)
                return found
        raise EOFError(f"byte {self._place} was not asked for")
