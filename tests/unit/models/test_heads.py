from pathlib import Path

import pytest

from tests.tiny import make_model
from topd_ray.errors import UserError
from topd_ray.models.heads import check_heads


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads")
    return make_model(
        folder, hidden=8, layers=1, seed=0, tied=True, heads=12, key_heads=4
    )


@pytest.mark.parametrize("num_ranks", [1, 2, 4, 12])
def test_heads_are_dealt_evenly_or_copied(folder: Path, num_ranks: int) -> None:
    check_heads(folder, num_ranks)


@pytest.mark.parametrize("num_ranks", [3, 6, 5, 24])
def test_heads_that_cannot_be_dealt_are_refused(folder: Path, num_ranks: int) -> None:
    message = (
        f"sequence_parallel={num_ranks}: the 12 attention heads of .*, and their 4"
        " heads of keys, cannot be dealt to so many ranks; set it to one of 1, 2, 4,"
        " 12$"
    )
    with pytest.raises(UserError, match=message):
        check_heads(folder, num_ranks)
