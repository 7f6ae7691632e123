"""Run folders for the page: models that write hostile things."""

import json
from pathlib import Path
from shutil import copytree

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.synthetic_run import WORLD

SCRIPT = "</script><script>document.title='owned'</script><img/src=x/onerror=alert(1)>"
OVERRIDE = "\u202egnilesrever"
CONTROL = "bell\u0007null\u0000"
HOSTILE = (SCRIPT, OVERRIDE, CONTROL)
LONG_TOKENS = 30_000
LONG_ID = "00000002.1"


def hostile_run(source: Path, path: Path) -> Path:
    """Copy a run, with hostile tokens in its first rollout and window, and a long one.

    The long one is the rollout `LONG_ID` of step 2.
    """
    copytree(source, path)
    ids = _write_tokenizer(path / "export")
    first = _rows(path / "rollouts" / "step_000001.parquet")
    first[0]["response_ids"][2:5] = ids
    _write(path / "rollouts" / "step_000001.parquet", first)
    windows = _rows(path / "windows" / "step_000001.parquet")
    windows[0]["student_ids"][:3] = ids
    _write(path / "windows" / "step_000001.parquet", windows)
    second = _rows(path / "rollouts" / "step_000002.parquet")
    (long,) = (row for row in second if row["rollout_id"] == LONG_ID)
    for name in ("response_ids", "token_loss", "logp", "logq"):
        times = LONG_TOKENS // len(long[name]) + 1
        long[name] = (long[name] * times)[:LONG_TOKENS]
    _write(path / "rollouts" / "step_000002.parquet", second)
    return path


def _write_tokenizer(folder: Path) -> list[int]:
    """Write the toy world's tokenizer with hostile words; return their ids."""
    folder.mkdir()
    student = WORLD / "student"
    tokenizer = json.loads((student / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    ids = []
    for word in HOSTILE:
        ids.append(len(vocabulary))
        vocabulary[word] = len(vocabulary)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = (student / "tokenizer_config.json").read_text(encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(config)
    return ids


def _rows(file: Path) -> list[dict[str, list[int]]]:
    rows: list[dict[str, list[int]]] = pq.read_table(file).to_pylist()
    return rows


def _write(file: Path, rows: list[dict[str, list[int]]]) -> None:
    schema = pq.read_schema(file)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), file)
