"""What one step says about the thresholds of later ones."""

import asyncio

from tests.unit.driver.fleet import NO_TIME, config
from topd_ray.driver.step import StepInFlight
from topd_ray.records.receipts import RolloutReceipt, TakeoverReceipt


def test_surprises_are_in_the_order_of_the_rollouts_whichever_chunk_they_came_in() -> (
    None
):
    """So they are the same where chunks hold what was finished first."""
    asked = config({"run": {"method": "takeover"}, "takeover": {"verdict": "surprise"}})

    async def values(*chunks: tuple[str, ...]) -> list[float]:
        step = StepInFlight(
            asked, 0, ("a", "b", "c", "d"), threshold=1.0, num_chunks=[len(chunks)]
        )
        step.let_learn(1.0)
        for index, names in enumerate(chunks):
            receipt = RolloutReceipt(
                rollout_ids=names,
                policy_version=0,
                num_tokens=1,
                num_truncated=0,
                entropy_sum=1.0,
                span=NO_TIME,
            )
            chunk = step.chunk(index, 0, "rollouts", receipt)
            chunk.takeover = taken_over(*names)
            await step.judged(chunk)
        return step.values_for_later()

    in_order = asyncio.run(values(("a", "b"), ("c", "d")))
    assert in_order == [97.0, 97.5, 98.0, 98.5, 99.0, 99.5, 100.0, 100.5]
    assert asyncio.run(values(("d", "a"), ("c", "b"))) == in_order


def taken_over(*names: str) -> TakeoverReceipt:
    """Two surprises of each rollout."""
    return TakeoverReceipt(
        dropped=(),
        num_sequence_tokens=(1,) * len(names),
        num_taken_over=0,
        num_own=0,
        num_judged=0,
        num_right=0,
        num_judged_before=0,
        num_right_before=0,
        num_tokens=0,
        num_prefix_tokens=0,
        num_cached_tokens=0,
        judged_values=tuple((n, (float(ord(n)), ord(n) + 0.5)) for n in names),
        span=NO_TIME,
    )
