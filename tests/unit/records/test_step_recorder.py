"""What a learner rank records of a step, and how much of it."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.make import probes, rollout, scored
from topd_ray.config import RecordsConfig
from topd_ray.messages import (
    HIGH,
    LOW,
    PAD,
    RANDOM,
    Floats,
    HiddenSignal,
    Ints,
    ProbeSet,
    SampledSignal,
    ScoredRollout,
    Takeover,
    TeacherSignal,
)
from topd_ray.records.run_folder import RunFolder
from topd_ray.records.step_recorder import StepRecorder, _Draw
from topd_ray.records.window_file import SCHEMA, SMALLEST_SHARE


def first_ids(signal: TeacherSignal, count: int) -> tuple[Ints, Floats] | None:
    """Name the ids of a position by the first number of its hidden state."""
    if not isinstance(signal, HiddenSignal):
        return None
    first_N1 = signal.hidden_ND[:, :1].astype(np.int32)
    return first_N1 + np.arange(count, dtype=np.int32), np.zeros(
        (len(first_N1), count), np.float32
    )


def a_rollout(name: str, *, length: int = 12) -> ScoredRollout:
    """The hidden state of position t begins with 10 t."""
    hidden_ND = np.tile(np.arange(length, dtype=np.float32)[:, None] * 10, (1, 4))
    return dataclasses.replace(
        scored(name, length=length), signal=HiddenSignal(hidden_ND=hidden_ND)
    )


def windows_of(name: str, positions: Sequence[int], **fields: Any) -> ProbeSet:
    count = len(positions)
    return probes(
        name,
        positions=tuple(positions),
        distances=(0.9,) * count,
        num_student=(3,) * count,
        **fields,
    )


def recorded(
    folder: Path,
    rollouts: Sequence[ScoredRollout],
    probe_sets: Sequence[ProbeSet] = (),
    takeovers: Mapping[str, Takeover] | None = None,
    **limits: int,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows of windows and of rollouts that a step leaves."""
    recorder = StepRecorder(RecordsConfig(**limits), RunFolder(folder))
    recorder.add(rollouts, probe_sets, takeovers or {}, 0.5)
    recorder.write(1, first_ids)
    return rows(folder / "windows"), rows(folder / "rollouts")


def rows(folder: Path, name: str = "step_000001.parquet") -> list[dict[str, Any]]:
    file = folder / name
    found: list[dict[str, Any]] = (
        pq.read_table(file).to_pylist() if file.is_file() else []
    )
    return found


def detailed(windows: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    return [
        (row["rollout_id"], row["position"])
        for row in windows
        if row["plan_rows"] is not None
    ]


def test_every_window_is_recorded_with_its_verdict(tmp_path: Path) -> None:
    groups = np.array([HIGH, RANDOM, LOW], np.int32)
    probe_set = probes(
        positions=(1, 2, 4),
        distances=(0.9, 0.1, 0.9),
        num_student=(3, 2, 1),
        groups_W=groups,
        resampled=True,
    )
    windows, _ = recorded(tmp_path, [scored()], [probe_set])
    assert list(windows[0]) == SCHEMA.names
    assert [row["divergent"] for row in windows] == [True, False, False]
    assert [row["position"] for row in windows] == [1, 2, 4]
    assert [row["group"] for row in windows] == ["high", "random", "low"]
    assert [row["resampled"] for row in windows] == [True] * 3
    assert [row["student_ids"] for row in windows] == [[7, 7, 7], [7, 7], [7]]
    assert windows[0]["teacher_ids"] == [30, 31, 32, 33]
    assert windows[0]["threshold"] == 0.5


def test_a_plan_is_recorded_as_its_entries_with_next_to_all_of_their_mass(
    tmp_path: Path,
) -> None:
    plan_WKK = np.random.default_rng(0).random((1, 4, 4)).astype(np.float32) ** 9
    plan_WKK[0, 3] = 0
    plan_WKK[0, 0] = [0.25, 0.9 * SMALLEST_SHARE * 0.25, 0, 0]
    (row,), _ = recorded(
        tmp_path, [scored()], [windows_of("r0", [1], plan_WKK=plan_WKK)]
    )
    plan_KK = np.zeros((4, 4), np.float32)
    plan_KK[row["plan_rows"], row["plan_columns"]] = row["plan_mass"]
    assert plan_KK[0].tolist() == [0.25, 0, 0, 0]
    np.testing.assert_allclose(
        plan_KK.sum(1), plan_WKK[0].sum(1), rtol=4 * SMALLEST_SHARE
    )
    assert row["plan_rows"] == sorted(row["plan_rows"])


def test_likeliest_ids_are_those_of_the_position(tmp_path: Path) -> None:
    ids_OM = np.arange(24, dtype=np.int32).reshape(12, 2)
    ids_OM[5, 1] = PAD
    read = dataclasses.replace(
        a_rollout("r0"),
        rollout=rollout("r0", length=12, top_ids_OM=ids_OM, top_logp_OM=-ids_OM / 8),
    )
    windows, _ = recorded(tmp_path, [read], [windows_of("r0", [4, 5])])
    assert [row["student_top_ids"] for row in windows] == [[8, 9], [10]]
    assert windows[0]["student_top_logp"] == [-1.0, -1.125]
    assert [row["teacher_top_ids"][:2] for row in windows] == [[40, 41], [50, 51]]
    assert len(windows[0]["teacher_top_logq"]) == 8


def test_what_is_unknown_is_null(tmp_path: Path) -> None:
    """Tokens that the student did not sample; a teacher that gives one number."""
    given = dataclasses.replace(
        a_rollout("r0"),
        rollout=rollout("r0", length=12, logp_O=np.zeros(0, np.float32)),
        signal=SampledSignal(logq_N=np.zeros(12, np.float32)),
    )
    windows, (row,) = recorded(tmp_path, [given], [windows_of("r0", [4])])
    assert windows[0]["student_top_ids"] is windows[0]["teacher_top_ids"] is None
    assert windows[0]["plan_rows"] is not None
    assert (row["num_own"], row["logp"]) == (0, [])


def test_plans_are_spread_over_recorded_rollouts_candidates_first(
    tmp_path: Path,
) -> None:
    names = [f"r{i}" for i in range(4)]
    groups_W = np.array([RANDOM, HIGH, HIGH, HIGH], np.int32)
    losses_W = np.array([9.0, 1.0, 3.0, 2.0], np.float32)
    probe_sets = [
        windows_of(name, [1, 2, 3, 4], groups_W=groups_W, losses_W=losses_W)
        for name in names
    ]
    windows, rollouts = recorded(
        tmp_path,
        [a_rollout(name) for name in names],
        probe_sets,
        max_windows_per_step=5,
        max_rollouts_per_step=2,
    )
    assert len(windows) == 16
    # Two rollouts are drawn; the second window of each is that of the next loss.
    assert detailed(windows) == [("r2", 2), ("r2", 3), ("r2", 4), ("r3", 3), ("r3", 4)]
    assert [row["rollout_id"] for row in rollouts] == ["r2", "r3"]


def test_a_plan_that_did_not_converge_is_not_recorded(tmp_path: Path) -> None:
    probe_set = windows_of("r0", [1, 2], converged_W=np.array([False, True]))
    windows, _ = recorded(tmp_path, [scored()], [probe_set])
    assert detailed(windows) == [("r0", 2)]


def test_which_rollouts_are_recorded_does_not_depend_on_which_come_first(
    tmp_path: Path,
) -> None:
    names = [f"{prompt:08d}.{sample}" for prompt in range(10) for sample in range(4)]
    windows_of_each = {name: windows_of(name, [1, 2]) for name in names}
    found = []
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(names).tolist()
        recorder = StepRecorder(
            RecordsConfig(max_windows_per_step=6, max_rollouts_per_step=8),
            RunFolder(tmp_path / str(seed)),
        )
        for share in (order[:3], order[3:20], order[20:]):
            recorder.add(
                [a_rollout(name) for name in share],
                [windows_of_each[name] for name in share],
                {},
                0.5,
            )
        recorder.write(1, first_ids)
        rollouts = [
            row["rollout_id"] for row in rows(tmp_path / str(seed) / "rollouts")
        ]
        details = detailed(rows(tmp_path / str(seed) / "windows"))
        assert len(details) == 6
        assert {name for name, _ in details} <= set(rollouts)
        found.append((rollouts, sorted(details)))
    assert found[1:] == found[:1] * 3
    assert len(found[0][0]) == 8


def test_every_rollout_has_the_same_chance_to_be_recorded() -> None:
    """Of the first and the last that come: 16 in 64, so 250 of 1,000 steps each."""
    drawn = np.zeros(64)
    for step in range(1000):
        draw = _Draw(16)
        names = [f"{64 * step + place:08d}.0" for place in range(64)]
        for place, name in enumerate(names):
            if draw.takes(name):
                draw.put(name, {"place": place})
        drawn[[row["place"] for row in draw.rows()]] += 1
    assert drawn.sum() == 16_000
    # A binomial's deviation is 13.7; the largest of 64 is within 4 of them.
    assert np.abs(drawn - 250).max() < 4 * 13.7


def test_a_rollout_is_recorded_as_the_student_wrote_it_and_where_the_teacher_went_on(
    tmp_path: Path,
) -> None:
    takeover = Takeover(
        rollout_id="r1",
        policy_version=0,
        position=2,
        response_ids_L=np.array([11, 12], np.int32),
        finish_reason="stop",
        signal=SampledSignal(logq_N=np.zeros(2, np.float32)),
        logq_L=np.zeros(2, np.float32),
    )
    read = [scored("r0"), scored("r1")]
    _, rollouts = recorded(tmp_path, read, takeovers={"r1": takeover})
    assert [row["takeover_position"] for row in rollouts] == [None, 2]
    assert [row["takeover_ids"] for row in rollouts] == [None, [11, 12]]
    assert rollouts[1]["response_ids"] == read[1].rollout.response_ids_N.tolist()
    assert rollouts[1]["token_loss"] == read[1].token_loss_N.tolist()
    assert (rollouts[0]["prompt_id"], rollouts[0]["finish_reason"]) == ("p0", "stop")


@pytest.mark.parametrize("kept", ["windows", "rollouts"])
def test_0_turns_either_file_off(tmp_path: Path, kept: str) -> None:
    off = {"windows": "rollouts", "rollouts": "windows"}[kept]
    recorded(
        tmp_path,
        [a_rollout("r0")],
        [windows_of("r0", [1])],
        **{f"max_{off}_per_step": 0},
    )
    assert [path.name for path in tmp_path.iterdir()] == [kept]


def test_ranks_share_what_a_step_may_record(tmp_path: Path) -> None:
    limits = RecordsConfig(max_windows_per_step=3, max_rollouts_per_step=3)
    for index, rank in enumerate((0, 2)):  # two ranks share each sequence
        recorder = StepRecorder(
            limits, RunFolder(tmp_path), index=index, num_recorders=2, rank=rank
        )
        names = [f"r{index}{i}" for i in range(3)]
        recorder.add(
            [a_rollout(name) for name in names],
            [windows_of(name, [1, 2]) for name in names],
            {},
            0.5,
        )
        recorder.write(1, first_ids)
    numbers = []
    for name in ("step_000001.parquet", "step_000001-rank2.parquet"):
        windows = rows(tmp_path / "windows", name)
        assert len(windows) == 6
        numbers.append((len(detailed(windows)), len(rows(tmp_path / "rollouts", name))))
    assert numbers == [(2, 2), (1, 1)]


def test_an_abandoned_step_leaves_nothing_and_an_empty_one_no_file(
    tmp_path: Path,
) -> None:
    recorder = StepRecorder(RecordsConfig(), RunFolder(tmp_path))
    recorder.add([a_rollout("r0")], [windows_of("r0", [1])], {}, 0.5)
    recorder.clear()
    recorder.write(1, first_ids)
    assert not list(tmp_path.iterdir())
    recorder.add([a_rollout("r1")], [windows_of("r1", [2])], {}, 0.5)
    recorder.write(1, first_ids)
    recorder.write(2, first_ids)
    assert [row["rollout_id"] for row in rows(tmp_path / "windows")] == ["r1"]
    assert not rows(tmp_path / "windows", "step_000002.parquet")
