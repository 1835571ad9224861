"""The safetensors format, straight from and to where the tensors lie.

The library copies every tensor when it writes, holding Python's lock, which would hold up the step; when it reads it copies
the file and then every tensor, which takes twice as long as the reading.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import torch

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.bool: "BOOL",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
_TORCH_DTYPES = {name: dtype for dtype, name in DTYPES.items()}
MALFORMED = (ValueError, KeyError, TypeError, AttributeError, RecursionError)  # what reading the wrong JSON raises


def header(shapes: dict[str, tuple[torch.dtype, list[int]]]) -> bytes:
    """What a file begins with whose tensors, one after the other, are of these dtypes and shapes."""
    entries: dict[str, Any] = {}
    offset = 0
    for name, (dtype, shape) in shapes.items():
        end = offset + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": DTYPES[dtype], "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def pieces(tensors: dict[str, torch.Tensor]) -> Iterator[bytes | memoryview]:
    """What a file of these tensors holds, piece by piece."""
    yield header({name: (tensor.dtype, list(tensor.shape)) for name, tensor in tensors.items()})
    for tensor in tensors.values():
        if tensor.numel():
            yield tensor.reshape(-1).view(torch.uint8).numpy().data


def parse(whole: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, as views of its bytes; raises one of MALFORMED if it is none."""
    start = 8 + int.from_bytes(whole[:8].numpy().tobytes(), "little")
    if start > whole.numel():
        raise ValueError("the header ends beyond the file")
    header = json.loads(whole[8:start].numpy().tobytes())
    header.pop("__metadata__", None)
    tensors, data = {}, whole[start:]
    for name, entry in header.items():
        dtype, shape, (begin, end) = _TORCH_DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
        if (
            not 0 <= begin <= end <= data.numel()
            or end - begin != math.prod(shape) * dtype.itemsize
            or min(shape, default=0) < 0
        ):
            raise ValueError(f"{name}: bytes {begin} to {end} are no {entry['dtype']} of shape {shape}")
        found = data[begin:end]
        if found.storage_offset() % dtype.itemsize:
            found = found.clone()
        tensors[name] = found.view(dtype).view(shape)
    return tensors
