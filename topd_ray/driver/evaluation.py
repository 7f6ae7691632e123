"""Held-out problems, asked of the rollout engines."""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any

from topd_ray.actors.fleet import Fleet, holder
from topd_ray.actors.replacement import Revival
from topd_ray.evaluation import Accuracy
from topd_ray.messages import Prompt


def held_out_accuracy(
    fleet: Fleet, revival: Revival, problems: Sequence[Prompt]
) -> Awaitable[Accuracy]:
    """Send the problems to the rollout engines now; wait for their answers when
    awaited.
    """
    shares = [problems[i :: len(fleet.rollouts)] for i in range(len(fleet.rollouts))]
    asked = [
        revival.asked(
            f"rollout[{i}]", actor, "evaluate", _asking(share), sent=_sent(actor, share)
        )
        for i, (actor, share) in enumerate(zip(fleet.rollouts, shares, strict=True))
        if share
    ]

    async def answered() -> Accuracy:
        return sum((one for (one,) in await asyncio.gather(*asked)), Accuracy())

    return answered()


def _asking(share: Sequence[Prompt]) -> Any:
    return lambda handle: handle.evaluate.remote(share)


def _sent(actor: Any, share: Sequence[Prompt]) -> tuple[Any, Any]:
    handle = holder(actor)
    return handle, _asking(share)(handle)
