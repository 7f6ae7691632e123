"""New weights, from the learner to the engines that decode or score with them."""

import asyncio
from dataclasses import dataclass

from topd_ray.actors.calls import all_of
from topd_ray.actors.protocols import Fleet, PublishedWeights
from topd_ray.records.receipts import Span
from topd_ray.records.timeline import Work


@dataclass(frozen=True, slots=True)
class _Sync:
    """One published version, and its load by each rollout engine."""

    weights: PublishedWeights
    engines: tuple[str, ...]
    loads: tuple["asyncio.Future[Span]", ...]


class WeightSync:
    """Publishes a version once, through the object store, and lets the engines load it.

    An engine loads weights between two calls, in the order of submission: what is
    submitted to it after `publish` is answered with them. Nothing waits for the load
    but `done`, where its errors surface.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._syncs: list[_Sync] = []
        self.followed: PublishedWeights | None = None
        """What the teacher took last (self-distillation); None: the weights of its
        start.
        """

    async def publish(self, policy_version: int, *, to_teachers: bool = False) -> None:
        """Send the learner's weights to the rollout engines; return once they are sent.

        With `to_teachers` (self-distillation) the teacher's engines have loaded them
        too on return.
        """
        for engine in self._fleet.rollouts:
            engine.forget_weights()  # the store need not hold two versions at once
        weights = await self._fleet.learners.publish(policy_version)
        self._syncs.append(
            _Sync(
                weights,
                tuple(engine.name for engine in self._fleet.rollouts),
                tuple(
                    asyncio.ensure_future(engine.update(weights))
                    for engine in self._fleet.rollouts
                ),
            )
        )
        if to_teachers:
            await self.give_to_teachers(weights)
            await self._fleet.learners.follow_teacher()

    async def done(self, up_to: int | None = None) -> tuple[float, list[Work]]:
        """Wait until the engines have loaded the versions `up_to`; by default all.

        A load waits for the rollouts submitted before it, and with several steps begun
        ahead those wait for the learner: the loop must wait for no version but those
        that it has received rollouts of. Returns the seconds of publishing and loading,
        and the work of each actor; both are reported once.
        """
        ripe = [s for s in self._syncs if up_to is None or _version(s) <= up_to]
        self._syncs = [sync for sync in self._syncs if sync not in ripe]
        works: list[Work] = []
        for sync in ripe:
            spans = await all_of(sync.loads)
            version = _version(sync)
            published = sync.weights.span
            for name in self._fleet.learners.names:
                works.append(_work(name, "publish", version, published))
            for name, span in zip(sync.engines, spans, strict=True):
                works.append(_work(name, "update", version, span))
        return sum(work.ended_s - work.began_s for work in works), works

    async def give_to_teachers(self, weights: PublishedWeights) -> None:
        """Let every engine of the teacher load a version; return when all have."""
        self.followed = weights
        await all_of([engine.update(weights) for engine in self._fleet.decoders])

    async def cancel(self) -> None:
        """Stop waiting for loads under way: their engines are about to be ended."""
        for sync in self._syncs:
            for load in sync.loads:
                load.cancel()
            await asyncio.gather(*sync.loads, return_exceptions=True)
        self._syncs = []


def _version(sync: _Sync) -> int:
    return sync.weights.policy_version


def _work(actor: str, what: str, version: int, span: Span) -> Work:
    return Work(
        actor=actor,
        what=what,
        step=version,
        chunk=None,
        began_s=span.began_s,
        ended_s=span.ended_s,
    )
