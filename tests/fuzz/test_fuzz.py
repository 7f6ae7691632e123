"""Damaged and odd files are refused with an error that names them, without a hang.

`make test` tries a few of each; `make fuzz` tries ten thousand (TOPD_FUZZ).
"""

import copy
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.make import rollout
from topd_ray.actors.placement import assumed_placement
from topd_ray.config import load_config
from topd_ray.driver.checkpoint import MANIFEST, open_checkpoint, seal
from topd_ray.driver.state import RunState
from topd_ray.errors import UserError
from topd_ray.inputs.gpu_memory import gpu_memory
from topd_ray.inputs.prompts import load_source
from topd_ray.inputs.resources import make_plan
from topd_ray.models.facts import read_facts
from topd_ray.models.folder import check_folder
from topd_ray.models.headers import tensor_facts
from topd_ray.records.bad_step import BadStep, read_dump, write_rollouts, write_step
from topd_ray.records.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
CASES = int(os.environ.get("TOPD_FUZZ", "300"))
LOCAL = ROOT / "configs" / "local-toy.yaml"
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


def fuzzed(share: float) -> Callable[[Any], Any]:
    """Try this share of all cases, each for five seconds at most."""
    return settings(
        max_examples=max(10, round(CASES * share)),
        deadline=5000,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        database=None,
    )


def refused_or(work: Callable[[], Any], name: str) -> Any:
    """Return what `work` returns; None where it raises an error with `name` in it."""
    try:
        return work()
    except UserError as error:
        refusal = error
    assert name in str(refusal)
    assert refusal.exit_code == 2
    return None


@st.composite
def damage(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """Cut, flip, double, insert, remove or swap bytes, at a few places."""
    kinds = st.sampled_from(["cut", "flip", "double", "put", "take", "swap"])
    wounds = draw(
        st.lists(
            st.tuples(kinds, st.floats(0, 1), st.floats(0, 1), st.binary(max_size=12)),
            min_size=1,
            max_size=4,
        )
    )

    def wound(data: bytes) -> bytes:
        for kind, first, second, new in wounds:
            a, b = sorted((int(first * len(data)), int(second * len(data))))
            match kind:
                case "cut":
                    data = data[:a]
                case "flip":
                    data = (
                        data[:a]
                        + bytes(x ^ 0x55 for x in data[a : a + 3])
                        + data[a + 3 :]
                    )
                case "double":
                    data = data[:b] + data[a:b] + data[b:]
                case "put":
                    data = data[:a] + new + data[a:]
                case "take":
                    data = data[:a] + data[b:]
                case _:
                    middle = (a + b) // 2
                    data = data[:a] + data[middle:b] + data[a:middle] + data[b:]
        return data

    return wound


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.text(max_size=20),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
)


def leaves(values: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value in a tree, without the root."""
    items = (
        values.items()
        if isinstance(values, dict)
        else enumerate(values)
        if isinstance(values, list)
        else ()
    )
    paths = []
    for key, value in items:
        paths += [(*path, key), *leaves(value, (*path, key))]
    return paths


@st.composite
def odd_values(draw: st.DrawFn, values: Any) -> Any:
    """Return the same tree with odd values in a few places."""
    changed = copy.deepcopy(values)
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from(leaves(changed)))
        place = changed
        for key in way:
            place = place[key]
        if draw(st.booleans()) or isinstance(place, list):
            place[last] = draw(ODD)
        else:
            place[draw(st.text(max_size=8))] = place.pop(last)
    return changed


@fuzzed(0.2)
@given(file=st.sampled_from(CONFIGS), wound=damage())
def test_a_config_of_damaged_text(
    file: Path,
    wound: Callable[[bytes], bytes],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    damaged = tmp_path_factory.getbasetemp() / "damaged.yaml"
    damaged.write_bytes(wound(file.read_bytes()))
    refused_or(lambda: load_config(damaged), damaged.name)


@fuzzed(0.2)
@given(
    data=st.data(),
    file=st.sampled_from([f for f in CONFIGS if "studies" not in str(f)]),
)
def test_a_config_of_odd_values(
    data: st.DataObject, file: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    odd = data.draw(odd_values(yaml.safe_load(file.read_text())))
    changed = tmp_path_factory.getbasetemp() / "odd.yaml"
    changed.write_text(yaml.safe_dump(odd), encoding="utf-8")
    config = refused_or(lambda: load_config(changed), changed.name)
    if config is not None:
        make_plan(config)
        refused_or(lambda: gpu_memory(config, assumed_placement(config)), "lower")


ROWS: list[dict[str, Any]] = [
    {"prompt": "w1 w2 3", "answer": "5", "id": "a"},
    {"messages": [{"role": "user", "content": "w3 \u00e9\U0001f600"}], "answer": 7},
    {
        "conversations": [
            {"from": "human", "value": "w4"},
            {"from": "gpt", "value": "5"},
        ]
    },
    {"prompt": "w7 4", "reference": "w2", "response": "w3"},
]


@pytest.fixture(scope="module")
def read_prompts(student_folder: Path, teacher_folder: Path) -> Callable[[Path], None]:
    models = [f"learner.model={student_folder}", f"teacher.model={teacher_folder}"]

    def read(file: Path) -> None:
        config = load_config(LOCAL, [f"prompts.path={file}", *models])
        found = refused_or(
            lambda: load_source(config, student=student_folder, teacher=teacher_folder),
            file.name,
        )
        if found is not None:
            source, _ = found
            assert all(len(prompt.token_ids_P) for prompt in source.take(3))

    return read


@fuzzed(0.15)
@given(wound=damage())
def test_prompts_of_damaged_text(
    wound: Callable[[bytes], bytes],
    read_prompts: Callable[[Path], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    file = tmp_path_factory.getbasetemp() / "damaged.jsonl"
    file.write_bytes(wound("\n".join(map(json.dumps, ROWS)).encode()))
    read_prompts(file)


@fuzzed(0.15)
@given(rows=odd_values(ROWS))
def test_prompts_of_odd_values(
    rows: Any,
    read_prompts: Callable[[Path], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    file = tmp_path_factory.getbasetemp() / "odd.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    read_prompts(file)


@fuzzed(0.05)
@given(wound=damage())
def test_prompts_of_damaged_parquet(
    wound: Callable[[bytes], bytes],
    read_prompts: Callable[[Path], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    file = tmp_path_factory.getbasetemp() / "damaged.parquet"
    rows = [{"prompt": f"w{i}", "answer": str(i)} for i in range(5)]
    pq.write_table(pa.Table.from_pylist(rows), file)
    file.write_bytes(wound(file.read_bytes()))
    read_prompts(file)


DRIVER: dict[str, Any] = {
    "step": 2,
    "cursor": 8,
    "teacher_version": 0,
    "ledger": {
        "num_dispatched": 16,
        "num_consumed": 15,
        "dropped": {"rewrite is wrong": 1},
    },
    "recent_distances": [0.25, 0.5],
    "totals": {"student_tokens": 100, "stage_s": {"rollout": 1.5}},
    "before": {"num_problems": 4, "num_correct": 2, "num_truncated": 0},
}


def make_checkpoint(folder: RunFolder, driver: Any, *, step: int = 2) -> Path:
    path = folder.checkpoints / f"step_{step}"
    (path / "learner").mkdir(parents=True)
    (path / "driver.json").write_text(json.dumps(driver))
    (path / "learner" / "shard.bin").write_bytes(bytes(range(200)))
    seal(path)
    (folder.checkpoints / "latest").write_text(f"step_{step}\n")
    return path


@fuzzed(0.1)
@given(
    wound=damage(),
    name=st.sampled_from(["driver.json", MANIFEST, "learner/shard.bin", "../latest"]),
)
def test_a_checkpoint_of_damaged_files(
    wound: Callable[[bytes], bytes], name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = RunFolder(tmp_path_factory.getbasetemp() / "damaged-run")
    shutil.rmtree(folder.path, ignore_errors=True)
    path = make_checkpoint(folder, DRIVER)
    whole = (path / name).read_bytes()
    damaged = wound(whole)
    (path / name).write_bytes(damaged)
    found = refused_or(lambda: open_checkpoint(folder), folder.path.name)
    if name in ("driver.json", "learner/shard.bin"):
        assert (found is None) == (damaged != whole)


def test_the_checkpoint_that_is_made_odd_can_be_read(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    make_checkpoint(folder, DRIVER)
    checkpoint = open_checkpoint(folder)
    assert RunState.of(load_config(LOCAL), checkpoint).step == DRIVER["step"]


@fuzzed(0.1)
@given(driver=odd_values(DRIVER))
def test_a_checkpoint_of_odd_values_whose_checksums_are_right(
    driver: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = RunFolder(tmp_path_factory.getbasetemp() / "odd-run")
    shutil.rmtree(folder.path, ignore_errors=True)
    make_checkpoint(folder, driver)
    config = load_config(LOCAL)
    found = refused_or(lambda: open_checkpoint(folder), folder.path.name)
    if found is not None:
        refused_or(lambda: RunState.of(config, found), folder.path.name)


@fuzzed(0.02)
@given(wound=damage(), name=st.sampled_from(["step.json", "rollouts.safetensors"]))
def test_a_damaged_dump(
    wound: Callable[[bytes], bytes], name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "damaged-dump"
    write_rollouts(folder, [rollout()])
    write_step(folder, BadStep(step=1, complaints=["x"], suspects=["a"], threshold=0.5))
    (folder / name).write_bytes(wound((folder / name).read_bytes()))
    refused_or(lambda: read_dump(folder), folder.name)


@fuzzed(0.03)
@given(wound=damage(), name=st.sampled_from(["config.json", "model.safetensors"]))
def test_a_damaged_model_folder(
    wound: Callable[[bytes], bytes],
    name: str,
    student_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.getbasetemp() / "damaged-model"
    shutil.copytree(student_folder, folder, dirs_exist_ok=True)
    data = (student_folder / name).read_bytes()
    head = 4000  # of the weights, only the header is read before anything starts
    (folder / name).write_bytes(wound(data[:head]) + data[head:])

    def read() -> None:
        check_folder(folder, role="learner.model")
        read_facts(folder)
        tensor_facts(folder)

    refused_or(read, folder.name)
