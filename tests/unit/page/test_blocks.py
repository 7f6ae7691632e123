"""What is packed is what the page reads."""

import numpy as np
import pytest

from topd_ray.page.blocks import NO_NUMBER, pack, thousandths, unpack


def test_columns_come_back_with_their_types() -> None:
    columns = {
        "ids": np.array([1, 2, 70_000], np.uint32),
        "flags": np.array([1], np.uint8),
        "distance": np.array([0.25, np.nan], np.float32),
        "none": np.zeros(0, np.uint16),
        "texts": ["<script>", "\u202e", "caf\u00e9", "\ud83d"],
    }
    found = unpack(pack(columns))
    assert list(found) == list(columns)
    for name, column in columns.items():
        np.testing.assert_array_equal(found[name], column)
        assert getattr(found[name], "dtype", None) == getattr(column, "dtype", None)


def test_the_same_columns_are_the_same_bytes() -> None:
    columns = {"ids": np.arange(5, dtype=np.uint32)}
    assert pack(columns) == pack(columns)


def test_an_array_that_a_browser_has_no_type_for_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ids: int64 \(2,\) is no column"):
        pack({"ids": np.zeros(2, np.int64)})


def test_thousandths_keep_three_decimals_and_say_where_there_is_no_number() -> None:
    found = thousandths(np.array([0.0004, -1.2345, 1e9, np.nan, np.inf]))
    assert found.tolist() == [0, 1234, NO_NUMBER - 1, NO_NUMBER, NO_NUMBER - 1]
