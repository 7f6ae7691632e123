import dataclasses

import numpy as np
import pytest

from tests.make import probes, scored
from topd_ray.messages import ScoredRollout, TopkSignal
from topd_ray.studies.target_masses import target_rows, targets_table


def reading(choice: int) -> ScoredRollout:
    """A teacher whose first choice is `choice` everywhere, with probability 1/2."""
    one = scored(length=5)
    signal = TopkSignal(
        ids_NM=np.full((5, 1), choice, np.int32),
        logq_NM=np.full((5, 1), np.log(0.5), np.float32),
    )
    return dataclasses.replace(
        one, signal=signal, token_loss_N=np.full(5, -np.log(0.25), np.float32)
    )


def test_a_target_is_held_against_the_teacher_in_the_students_context() -> None:
    # the teacher's window holds 30, 31, 32, 33; the plan is uniform; the student said 7
    first, second, third = target_rows([probes()], {"r0": reading(31)}, threshold=0.1)
    assert [first.place, second.place, third.place] == [0, 1, 2]
    assert first.on_own == 0.0
    assert first.on_choice == pytest.approx(0.25)
    assert first.teacher_on_own == pytest.approx(0.25)
    assert first.teacher_on_choice == pytest.approx(0.5)


def test_the_students_own_token_has_the_mass_of_all_its_occurrences() -> None:
    teacher_WK = np.array([[7, 31, 7, 33]], np.int32)
    first, *_ = target_rows(
        [probes(teacher_ids_WK=teacher_WK)], {"r0": reading(99)}, threshold=0.1
    )
    assert first.on_own == pytest.approx(0.5)
    assert first.on_choice == 0.0


def test_only_divergent_windows_count() -> None:
    assert target_rows([probes()], {"r0": reading(31)}, threshold=0.9) == []


def test_fresh_windows_are_refused() -> None:
    with pytest.raises(ValueError, match="fresh windows have no readings"):
        target_rows([probes(resampled=True)], {"r0": reading(31)}, threshold=0.1)


def test_positions_are_reported_by_their_distance_from_the_candidate() -> None:
    rows = target_rows([probes()], {"r0": reading(31)}, threshold=0.1)
    table = targets_table(rows, seed=0)
    assert [(row[0], row[1]) for row in table.rows] == [("0", 1), ("1-4", 2)]
