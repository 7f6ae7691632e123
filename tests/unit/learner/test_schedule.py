import pytest

from topd_ray.learner.schedule import lr_factor


def factors(
    total: int, *, warmup: float = 0.05, floor: float = 0.1, count: int | None = None
):
    return [
        lr_factor(step, total_steps=total, warmup_fraction=warmup, floor_fraction=floor)
        for step in range(count or total)
    ]


def test_it_rises_to_the_peak_then_falls_to_the_floor_at_the_last_step():
    values = factors(100)
    peak = values.index(1.0)
    assert peak == 5
    assert values[: peak + 1] == sorted(values[: peak + 1])
    assert values[peak:] == sorted(values[peak:], reverse=True)
    assert values[-1] == pytest.approx(0.1)


def test_the_first_step_already_moves():
    assert all(value > 0 for value in factors(40, floor=0.0)[:-1])


def test_a_floor_of_one_keeps_the_rate_after_the_warmup():
    assert factors(50, floor=1.0)[3:] == [1.0] * 47


def test_without_warmup_the_first_step_has_the_whole_rate():
    assert factors(10, warmup=0.0)[0] == 1.0


def test_a_run_of_one_step_takes_a_useful_rate():
    assert factors(1, warmup=0.0) == [1.0]
    assert factors(1) == [0.5]


def test_past_the_end_the_floor_holds():
    assert factors(10, count=15)[-1] == pytest.approx(0.1)
