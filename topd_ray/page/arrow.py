"""Columns of an Arrow table as arrays; a column that an older run lacks is all null."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


def numbers(
    table: pa.Table, name: str, dtype: str, *, missing: float = 0
) -> NDArray[Any]:
    """Return a column of numbers; `missing` in the place of null."""
    if name not in table.column_names:
        return np.full(len(table), missing, dtype)
    column = table[name].combine_chunks()
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    if pa.types.is_null(column.type):
        return np.full(len(table), missing, dtype)
    filled = column.fill_null(missing).to_numpy(zero_copy_only=False)
    found: NDArray[Any] = filled.astype(dtype)
    return found


def texts(table: pa.Table, name: str) -> list[str]:
    """Return a column of texts; "" in the place of null."""
    if name not in table.column_names:
        return [""] * len(table)
    return [value or "" for value in table[name].to_pylist()]


def lists(table: pa.Table, name: str, dtype: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the values of a column of lists, one after the other, and each length.

    A null is a list of no values.
    """
    if name not in table.column_names:
        return np.zeros(0, dtype), np.zeros(len(table), np.int64)
    column = table[name].combine_chunks()
    if pa.types.is_null(column.type):
        return np.zeros(0, dtype), np.zeros(len(table), np.int64)
    lengths = pc.list_value_length(column).fill_null(0)
    values = column.flatten()
    if values.null_count:
        values = values.fill_null(0)
    return (
        values.to_numpy(zero_copy_only=False).astype(dtype),
        lengths.to_numpy(zero_copy_only=False).astype(np.int64),
    )


def starts(lengths: NDArray[Any]) -> NDArray[np.int64]:
    """Return where each list begins, and behind the last its end: one more entry."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


__all__ = ["lists", "numbers", "starts", "texts"]
