"""New weights, from the learner to the engines that decode or score with them."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from topd_ray.actors.calls import all_of
from topd_ray.actors.protocols import Fleet, PublishedWeights
from topd_ray.driver.direct_transfer import DirectTransfer, TransferError
from topd_ray.driver.turns import RoleTurns
from topd_ray.records.receipts import Span
from topd_ray.records.timeline import Work


@dataclass(frozen=True, slots=True)
class _Sync:
    """One version on its way, and its load by each rollout engine."""

    policy_version: int
    published: Span
    engines: tuple[str, ...]
    loads: tuple["asyncio.Future[Span]", ...]


class WeightSync:
    """Sends a version to the engines, through the object store or directly.

    An engine loads weights between two calls, in the order of submission: what is
    submitted to it after `publish` is answered with them. Through the store nothing
    waits for the load but `done`, where its errors surface. Roles that take turns do so
    here too: the learner sleeps before an engine wakes to load.
    """

    def __init__(
        self,
        fleet: Fleet,
        direct: DirectTransfer | None = None,
        turns: RoleTurns | None = None,
        *,
        on_failure: Callable[[int, str], None] = lambda *_: None,
    ) -> None:
        """Take the actors, and how weights travel.

        Args:
            fleet: The actors.
            direct: Sends weights from memory to memory; None: through the store.
            turns: Of the roles; by default those of the fleet, in their first state.
            on_failure: Records a direct transfer that failed and was made good: the
                policy version, and the reason.
        """
        self._fleet = fleet
        self._direct = direct
        self._turns = turns or RoleTurns(fleet)
        self._on_failure = on_failure
        self._syncs: list[_Sync] = []
        self.followed: PublishedWeights | None = None
        """What the teacher took last (self-distillation); None: the weights of its
        start.
        """

    async def publish(self, policy_version: int, *, to_teachers: bool = False) -> None:
        """Send the learner's weights to the rollout engines; return once they are sent.

        With `to_teachers` (self-distillation) the teacher's engines have loaded them
        too on return; such a version travels through the store to all.
        """
        for engine in self._fleet.rollouts:
            engine.forget_weights()  # the store need not hold two versions at once
        if self._direct is None or to_teachers:
            await self._through_store(policy_version, to_teachers=to_teachers)
        else:
            await self._directly(self._direct, policy_version)

    async def done(self, up_to: int | None = None) -> tuple[float, list[Work]]:
        """Wait until the engines have loaded the versions `up_to`; by default all.

        A load waits for the rollouts submitted before it, and with several steps begun
        ahead those wait for the learner: the loop must wait for no version but those
        that it has received rollouts of. Returns the seconds of publishing and loading,
        and the work of each actor; both are reported once.
        """
        ripe = [s for s in self._syncs if up_to is None or s.policy_version <= up_to]
        self._syncs = [sync for sync in self._syncs if sync not in ripe]
        works: list[Work] = []
        for sync in ripe:
            spans = await all_of(sync.loads)
            version = sync.policy_version
            for name in self._fleet.learners.names:
                works.append(_work(name, "publish", version, sync.published))
            for name, span in zip(sync.engines, spans, strict=True):
                works.append(_work(name, "update", version, span))
        return sum(work.ended_s - work.began_s for work in works), works

    async def give_to_teachers(self, weights: PublishedWeights) -> None:
        """Let every engine of the teacher load a version; return when all have."""
        await self._turns.to("teacher")
        self.followed = weights
        await all_of([engine.update(weights) for engine in self._fleet.decoders])

    async def cancel(self) -> None:
        """Stop waiting for loads under way: their engines are about to be ended."""
        for sync in self._syncs:
            for load in sync.loads:
                load.cancel()
            await asyncio.gather(*sync.loads, return_exceptions=True)
        self._syncs = []

    async def _through_store(self, policy_version: int, *, to_teachers: bool) -> None:
        await self._turns.to("learner")
        weights = await self._fleet.learners.publish(policy_version)
        if to_teachers:
            await self._fleet.learners.follow_teacher()
        await self._turns.to("rollout", "weights")
        loads = [
            asyncio.ensure_future(engine.update(weights))
            for engine in self._fleet.rollouts
        ]
        self._add(policy_version, weights.span, loads)
        if to_teachers:
            await self.give_to_teachers(weights)

    async def _directly(self, direct: DirectTransfer, policy_version: int) -> None:
        began_s = time.monotonic()
        try:
            spans = await direct.send(policy_version)
        except TransferError as failed:
            spans = await self._made_good(direct, failed, policy_version)
        sent = Span.since(began_s)
        self._add(policy_version, sent, [_ended(span) for span in spans])

    async def _made_good(
        self, direct: DirectTransfer, failed: TransferError, policy_version: int
    ) -> list[Span]:
        """Bring all engines to the version through the store.

        Raises the cause where no engine was lost: the next transfer would end like this
        one.
        """
        if failed.loss is None:
            raise failed.cause
        self._on_failure(policy_version, str(failed))
        began_s = time.monotonic()
        weights = await self._fleet.learners.publish(policy_version)
        await direct.recover(failed, weights)
        return [Span.since(began_s) for _ in self._fleet.rollouts]

    def _add(
        self, policy_version: int, sent: Span, loads: Sequence["asyncio.Future[Span]"]
    ) -> None:
        names = tuple(engine.name for engine in self._fleet.rollouts)
        self._syncs.append(_Sync(policy_version, sent, names, tuple(loads)))


def _ended(span: Span) -> "asyncio.Future[Span]":
    load: asyncio.Future[Span] = asyncio.get_running_loop().create_future()
    load.set_result(span)
    return load


def _work(actor: str, what: str, version: int, span: Span) -> Work:
    return Work(
        actor=actor,
        what=what,
        step=version,
        chunk=None,
        began_s=span.began_s,
        ended_s=span.ended_s,
    )
