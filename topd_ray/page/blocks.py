"""Columns of numbers and texts -> one compressed block that the page reads.

Layout before compression, little-endian: the header's length in bytes (u4), the header
(JSON, UTF-8, padded with blanks to a multiple of 8), then the arrays, each padded to a
multiple of 8, because a typed array of JavaScript must begin at a multiple of its size.
"""

import gzip
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

BlockColumn = NDArray[Any] | Sequence[str]
"""An array of one axis, or one text a row."""
THOUSANDTHS = 1000
LARGEST = 65_534
NO_NUMBER = 65_535
"""What `thousandths` writes for nan."""

_TYPES = ("u1", "u2", "u4", "i1", "i2", "i4", "f4")
_PAD = 8
# 6 is no smaller than 5 on these columns, and takes half as long again.
_LEVEL = 5


def pack(columns: Mapping[str, BlockColumn]) -> bytes:
    """Return the block of some columns. Raises ValueError for another type of array."""
    header: dict[str, Any] = {}
    arrays: list[bytes] = []
    offset = 0
    for name, column in columns.items():
        if not isinstance(column, np.ndarray):
            header[name] = list(column)
            continue
        kind = column.dtype.str[1:]
        if kind not in _TYPES or column.ndim != 1:
            raise ValueError(f"{name}: {column.dtype} {column.shape} is no column")
        data = _padded(column.astype(f"<{kind}", copy=False).tobytes(), b"\0")
        header[name] = {"type": kind, "offset": offset, "length": len(column)}
        arrays.append(data)
        offset += len(data)
    # A lone surrogate cannot be written as UTF-8; ASCII with escapes holds everything.
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    # The header's length counts too, so that the arrays begin at a multiple of 8.
    text += b" " * (-(len(text) + 4) % _PAD)
    whole = b"".join([struct.pack("<I", len(text)), text, *arrays])
    return gzip.compress(whole, _LEVEL, mtime=0)


def unpack(block: bytes) -> dict[str, BlockColumn]:
    """Return the columns of a block, as the page reads them."""
    whole = gzip.decompress(block)
    (length,) = struct.unpack_from("<I", whole)
    header = json.loads(whole[4 : 4 + length])
    columns: dict[str, BlockColumn] = {}
    for name, found in header.items():
        if isinstance(found, list):
            columns[name] = found
        else:
            columns[name] = np.frombuffer(
                whole,
                f"<{found['type']}",
                found["length"],
                4 + length + found["offset"],
            )
    return columns


def thousandths(values: NDArray[Any]) -> NDArray[np.uint16]:
    """Return sizes in thousandths, at most `LARGEST`; `NO_NUMBER` where nan.

    Half the bytes of a float, and what a reader sees has three decimals anyway.
    """
    scaled = np.clip(np.abs(values) * THOUSANDTHS, 0, LARGEST)
    rounded = np.where(np.isnan(scaled), NO_NUMBER, np.round(scaled))
    return rounded.astype(np.uint16)


def _padded(data: bytes, filler: bytes) -> bytes:
    return data + filler * (-len(data) % _PAD)


__all__ = ["NO_NUMBER", "THOUSANDTHS", "BlockColumn", "pack", "thousandths", "unpack"]
