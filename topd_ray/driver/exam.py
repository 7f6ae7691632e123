"""Held-out problems, asked of the rollout engines."""

from collections.abc import Awaitable, Sequence

from topd_ray.driver.calls import Caller
from topd_ray.driver.spawn import Fleet
from topd_ray.evaluation import Accuracy
from topd_ray.messages import Prompt


def ask(fleet: Fleet, caller: Caller, problems: Sequence[Prompt]) -> Awaitable[Accuracy]:
    """Send the problems to the rollout engines now; wait for their answers when awaited."""
    shares = [problems[i :: len(fleet.rollouts)] for i in range(len(fleet.rollouts))]
    asked = [
        caller.call(f"rollout[{i}]", "evaluate", actor.evaluate.remote(share))
        for i, (actor, share) in enumerate(zip(fleet.rollouts, shares, strict=True))
        if share
    ]

    async def answered() -> Accuracy:
        return sum(await caller.all(asked), Accuracy())

    return answered()
