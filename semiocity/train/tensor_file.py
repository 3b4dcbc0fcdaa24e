"""A safetensors file written bit by bit and hashed on the way, from tensors wherever they lie.

The library's own writer copies everything to the host first and holds Python's lock until the disk is done, so that a
training beside it stands still. This one needs the memory of one piece, and its long calls release the lock.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PIECE_BYTES = 16 * 2**20
NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Cancelled(Exception):
    """Nobody wants the file any more."""


def write(
    file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], cancelled: threading.Event | None = None
) -> dict[str, Any]:
    """Write a new file and make it durable; returns its `bytes` and `sha256`. Its mode is what the umask asks for.

    Raises FileExistsError, KeyError for a type that the format has no name for, and Cancelled once the event is set.
    """
    # Wide types first, so that each begins at a multiple of its width.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    digest, size = hashlib.sha256(), 0
    with file.open("xb", buffering=0) as stream:
        for piece in _pieces(names, tensors, metadata):
            if cancelled is not None and cancelled.is_set():
                raise Cancelled(file.name)
            digest.update(piece)
            rest = memoryview(piece)
            while rest:  # a raw stream may take less than it is given
                rest = rest[stream.write(rest) :]
            size += len(piece)
        os.fsync(stream.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}


def _pieces(names: list[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[memoryview]:
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name in names:
        tensor = tensors[name]
        header[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.nbytes],
        }
        at += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield memoryview(struct.pack("<Q", len(text)) + text)
    for name in names:
        flat = tensors[name].detach().reshape(-1)
        each = PIECE_BYTES // flat.element_size()
        for start in range(0, flat.numel(), each):
            # numpy has no bf16, but bytes it has.
            yield flat[start : start + each].cpu().view(torch.uint8).numpy().data
