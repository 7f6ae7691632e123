"""A step's receipts, and what gives reason for complaint."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.make import rollout
from topd_ray.config import Config
from topd_ray.driver.health import (
    complaints,
    refuse_mismatch,
    suspects,
    truncation_notice,
)
from topd_ray.errors import UserError, WeightsError
from topd_ray.messages import LossSums, TokenGap
from topd_ray.records.bad_step import BadStep, read_dump, write_rollouts, write_step
from topd_ray.records.receipts import (
    LearnedRound,
    LearnReceipt,
    ProbeReceipt,
    RolloutReceipt,
    Span,
    StepReceipts,
)

NO_TIME = Span(0.0, 0.0)


def config(**sections: Any) -> Config:
    base: dict[str, Any] = {
        "prompts": {"path": "x"},
        "learner": {"model": "s"},
        "teacher": {"model": "t"},
    }
    return Config.model_validate(base | sections)


def receipts(
    *, opd: float = 1.0, kl: float = 0.0, entropy: float = 1.0, truncated: int = 0
) -> StepReceipts:
    """Two chunks of two rollouts of five tokens; `opd` is the second's."""
    names = [("a", "b"), ("c", "d")]
    return StepReceipts(
        rollouts=[
            RolloutReceipt(
                rollout_ids=ids,
                policy_version=0,
                num_tokens=10,
                num_truncated=truncated,
                entropy_sum=10 * entropy,
                span=NO_TIME,
            )
            for ids in names
        ],
        rounds=[
            LearnedRound(
                (ids,),
                [
                    LearnReceipt(
                        sums=LossSums(
                            opd=loss, rollout_kl=10 * kl, num_tokens=10, num_sampled=10
                        ),
                        num_divergent=0,
                        span=NO_TIME,
                    )
                ],
            )
            for ids, loss in zip(names, (1.0, opd), strict=True)
        ],
    )


@pytest.mark.parametrize(
    ("case", "limits", "words"),
    [
        ({}, {}, None),
        ({"opd": math.nan}, {}, "not finite"),
        ({"opd": math.inf}, {}, "not finite"),
        ({"kl": 0.06}, {}, "health.max_rollout_kl=0.05"),
        ({"kl": 1.5}, {"max_rollout_kl": 2.0}, None),
        ({"kl": math.nan}, {}, "health.max_rollout_kl=0.05"),
        ({"entropy": 1e-6}, {}, "health.min_entropy=0.0001"),
        ({"entropy": 1e-6}, {"min_entropy": 0.0}, None),
        ({"entropy": math.nan}, {}, "health.min_entropy"),
        ({"truncated": 2}, {}, None),
        ({"truncated": 2}, {"max_truncated": 1.0}, "100% of the rollouts"),
        ({"truncated": 1}, {"max_truncated": 1.0}, None),
        ({"truncated": 1}, {"max_truncated": 0.5}, "50% of the rollouts"),
    ],
)
def test_each_limit_is_drawn_by_its_field(
    case: dict[str, Any], limits: dict[str, Any], words: str | None
) -> None:
    found = complaints(config(health=limits), receipts(**case))
    assert bool(found) == (words is not None)
    assert words is None or words in found[0]


FLOAT32 = {"dtype": "float32"}
BFLOAT16 = {"dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("learner", "engine", "stale", "on_policy", "any_step"),
    [
        (FLOAT32, FLOAT32, 0, 1e-3, 1e-3),
        (FLOAT32, BFLOAT16, 0, 0.05, 0.05),
        (BFLOAT16, FLOAT32, 0, 0.05, 0.05),
        (BFLOAT16, BFLOAT16, 0, 0.05, 0.05),
        (FLOAT32, FLOAT32, 1, 1e-3, 1.0),
    ],
)
def test_the_limit_of_rollout_kl_goes_by_number_format_and_staleness(
    learner: dict[str, Any],
    engine: dict[str, Any],
    stale: int,
    on_policy: float,
    any_step: float,
) -> None:
    def limits(**health: float) -> tuple[float, float]:
        made = config(
            learner={"model": "s"} | learner,
            rollout={"engine": engine, "max_staleness": stale},
            health=health,
        )
        return made.on_policy_kl, made.max_rollout_kl

    assert limits() == (on_policy, any_step)
    assert limits(max_rollout_kl=0.3) == (0.3, 0.3)


def test_an_engine_that_computes_another_model_is_refused_with_the_worst_tokens() -> (
    None
):
    found = receipts(kl=0.06)
    for place, receipt in enumerate(found.learned):
        gap = TokenGap(
            rollout_id=f"r{place}",
            index=7,
            token_id=30 + place,
            engine_logp=-0.25,
            learner_logp=-1.25 - place,
        )
        found.rounds[place].receipts[0] = replace(
            receipt, sums=replace(receipt.sums, worst_gap=gap)
        )
    with pytest.raises(WeightsError) as caught:
        refuse_mismatch(config(), found)
    message = str(caught.value)
    assert "rollout_kl 0.06 nats a token exceeds 0.05" in message
    worst = "rollout r1, token 31 at 7: log p -0.2500 in the engine, -2.2500 in the"
    assert worst in message
    assert message.index("rollout r1") < message.index("rollout r0")
    refuse_mismatch(config(), receipts(kl=0.04))
    refuse_mismatch(config(health={"max_rollout_kl": 0.1}), found)


def test_given_responses_say_nothing_of_the_policy() -> None:
    given = config(run={"method": "kd"})
    assert complaints(given, receipts(entropy=0.0)) == []
    assert complaints(given, receipts(opd=math.nan)) == ["loss is not finite"]


def test_the_share_that_is_not_finite_is_named_and_otherwise_all_are() -> None:
    assert suspects(receipts(opd=math.nan)) == ["c", "d"]
    assert suspects(receipts(kl=9.0)) == ["a", "b", "c", "d"]


def test_a_rollout_of_ranks_that_share_it_is_named_once() -> None:
    found = receipts(opd=math.nan)
    shared = [replace(r, rollout_ids=r.rollout_ids * 2) for r in found.rounds]
    found.rounds[:] = [replace(r, receipts=r.receipts * 2) for r in shared]
    assert suspects(found) == ["c", "d"]


def test_a_dump_reads_back_to_what_was_written(tmp_path: Path) -> None:
    given = rollout("g", logp_O=np.zeros(0, np.float32))
    written = [rollout("a", length=3), rollout("b", length=9), given]
    step = BadStep(
        step=7, complaints=["loss is not finite"], suspects=["b"], threshold=None
    )
    write_rollouts(tmp_path, written)
    with pytest.raises(UserError, match="not a dump of a step"):
        read_dump(tmp_path)
    write_step(tmp_path, step)
    found, rollouts = read_dump(tmp_path)
    assert found == step
    for one, other in zip(rollouts, written, strict=True):
        assert one.rollout_id == other.rollout_id
        assert one.finish_reason == other.finish_reason
        np.testing.assert_array_equal(one.response_ids_N, other.response_ids_N)
        np.testing.assert_array_equal(one.top_logp_OM, other.top_logp_OM)
        assert one.logp_O.shape == other.logp_O.shape


def probed(num_windows: int, num_unconverged: int) -> ProbeReceipt:
    return ProbeReceipt(
        distances=(),
        threshold_distances=(),
        num_windows=num_windows,
        num_unconverged=num_unconverged,
        span=NO_TIME,
    )


def test_a_solver_that_gives_up_on_most_windows_makes_the_step_bad() -> None:
    """Without verdicts there are no divergent windows, and topd would be opd."""
    step = replace(receipts(), probes=[probed(3, 3), probed(5, 1)])
    assert complaints(config(), step) == []
    step = replace(receipts(), probes=[probed(3, 3), probed(5, 2)])
    (complaint,) = complaints(config(), step)
    assert "5 of 8 windows did not converge (health.max_unconverged=0.5)" in complaint
    assert "probe.solver=exact" in complaint
    assert complaints(config(health={"max_unconverged": 1.0}), step) == []
    assert complaints(config(), replace(receipts(), probes=[probed(0, 0)])) == []


def test_rollouts_that_nearly_all_run_to_the_limit_are_worth_a_warning() -> None:
    assert truncation_notice(receipts(truncated=1)) is None
    notice = truncation_notice(receipts(truncated=2))
    assert notice is not None
    assert "4 of 4 rollouts were cut at the token limit" in notice
    assert "`topd check` prints" in notice
