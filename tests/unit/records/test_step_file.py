"""Files of single steps: found, replaced, and dropped when steps are done again."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from topd_ray.records.step_file import forget_steps_after, step_files, write_step_file


def write(folder: Path, step: int, rank: int = 0, value: int = 0) -> None:
    write_step_file(pa.table({"value": [value]}), folder, step=step, rank=rank)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_step_has_a_file_a_rank_and_a_second_write_replaces_it(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "windows"
    write(folder, 12)
    write(folder, 12, rank=1)
    write(folder, 12, value=7)
    write(folder, 13)
    assert [path.name for path in step_files(folder, 12)] == [
        "step_000012-rank1.parquet",
        "step_000012.parquet",
    ]
    assert pq.read_table(folder / "step_000012.parquet").to_pylist() == [{"value": 7}]
    assert not step_files(tmp_path / "missing", 12)


def test_steps_that_are_done_again_are_forgotten_with_every_rank_of_theirs(
    tmp_path: Path,
) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step, rank=step)
        write(tmp_path, step)
    (tmp_path / "step_000009.partial").touch()
    (tmp_path / "notes.txt").touch()
    forget_steps_after(tmp_path, 1)
    forget_steps_after(tmp_path / "missing", 1)
    assert names(tmp_path) == [
        "notes.txt",
        "step_000001-rank1.parquet",
        "step_000001.parquet",
        "step_000009.partial",
    ]
