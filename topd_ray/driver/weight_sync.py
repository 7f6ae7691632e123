"""New weights, from the learner to the engines that decode or score with them."""

import asyncio

from topd_ray.actors.calls import all_of
from topd_ray.actors.protocols import Fleet, PublishedWeights
from topd_ray.records.receipts import Span
from topd_ray.records.timeline import Work


class WeightSync:
    """Publishes a version once, through the object store, and lets the engines load it.

    An engine loads weights between two calls, in the order of submission: what is
    submitted to it after `publish` is answered with them. Nothing waits for the load;
    its errors surface in `done`.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._loads: list[tuple[str, asyncio.Future[Span]]] = []
        self._works: list[Work] = []
        self._version = 0
        self.followed: PublishedWeights | None = None
        """What the teacher took last (self-distillation); None: its weights of the
        start.
        """

    async def publish(self, policy_version: int, *, to_teachers: bool = False) -> None:
        """Send the learner's weights to the rollout engines; return once they are sent.

        With `to_teachers` (self-distillation) the teacher's engines have loaded them
        too on return.
        """
        await self.done()
        for engine in self._fleet.rollouts:
            engine.forget_weights()  # the store need not hold two versions at once
        weights = await self._fleet.learners.publish(policy_version)
        self._version = policy_version
        self._works = [
            self._work(name, "publish", weights.span)
            for name in self._fleet.learners.names
        ]
        self._loads = [
            (engine.name, asyncio.ensure_future(engine.update(weights)))
            for engine in self._fleet.rollouts
        ]
        if to_teachers:
            await self.give_to_teachers(weights)
            await self._fleet.learners.follow_teacher()

    async def done(self) -> tuple[float, list[Work]]:
        """Wait until the engines have loaded what was published.

        Returns the seconds of publishing and loading, and the work of each actor. Both
        are reported once: 0 and nothing where no version was published since.
        """
        loads, self._loads = self._loads, []
        if not loads:
            return 0.0, []
        spans = await all_of([load for _, load in loads])
        works = self._works + [
            self._work(name, "update", span)
            for (name, _), span in zip(loads, spans, strict=True)
        ]
        return sum(work.ended_s - work.began_s for work in works), works

    async def give_to_teachers(self, weights: PublishedWeights) -> None:
        """Let every engine of the teacher load a version; return when all have."""
        self.followed = weights
        await all_of([engine.update(weights) for engine in self._fleet.decoders])

    def cancel(self) -> None:
        """Stop waiting for loads under way: their engines are about to be ended."""
        for _, load in self._loads:
            load.cancel()

    def _work(self, actor: str, what: str, span: Span) -> Work:
        return Work(
            actor=actor,
            what=what,
            step=self._version,
            chunk=None,
            began_s=span.began_s,
            ended_s=span.ended_s,
        )
