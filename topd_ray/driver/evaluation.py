"""Accuracy on held-out problems during a run, by its rollout engines."""

import asyncio
from collections.abc import Sequence

from topd_ray.actors.calls import all_of
from topd_ray.actors.protocols import Fleet
from topd_ray.driver.dealing import deal_to_engines
from topd_ray.evaluation import Accuracy
from topd_ray.messages import Prompt


def evaluate(fleet: Fleet, problems: Sequence[Prompt]) -> asyncio.Task[Accuracy]:
    """Submit the problems to the rollout engines now; the task ends with their
    accuracy.

    An engine answers after the calls that it was given before.
    """
    shares = deal_to_engines(problems, len(fleet.rollouts))
    # Submitted before the task exists: calls that follow this one come after it.
    answers = [
        engine.evaluate(share)
        for engine, share in zip(fleet.rollouts, shares, strict=True)
        if share
    ]

    async def answered() -> Accuracy:
        return sum(await all_of(answers), Accuracy())

    return asyncio.ensure_future(answered())
