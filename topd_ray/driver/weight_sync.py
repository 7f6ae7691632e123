"""New weights, from the learner to everything that decodes or reads with them."""

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from topd_ray.actors.calls import Caller
from topd_ray.actors.fleet import Fleet, holder
from topd_ray.errors import ActorDiedError, DeadlineError, TopdError
from topd_ray.records.receipts import Span
from topd_ray.records.timeline import Work

Revive = Callable[[Any, Any, TopdError], Awaitable[None]]
"""Actor, who had its place, what befell them; returns when somebody else has it."""


async def _give_up(_actor: Any, _handle: Any, error: TopdError) -> None:
    raise error


class Refit:
    """Publishes once, through the object store: one copy a node, however many engines
    take it.

    An engine takes new weights between two calls, in the order of submission: what is
    asked of it after `publish` is answered with them. Nobody waits for that; `done` is
    where errors surface.
    """

    def __init__(self, fleet: Fleet, caller: Caller) -> None:
        self._fleet, self._caller = fleet, caller
        self.revive: Revive = _give_up
        self._pending: list[
            tuple[str, Any, Any, Any]
        ] = []  # name, actor, its handle, reference
        self._newest: tuple[int, Sequence[Any]] | None = None
        self._followed: tuple[int, Sequence[Any]] | None = None
        self._version, self._began_s, self._works = 0, 0.0, list[Work]()

    async def publish(self, policy_version: int, *, to_teachers: bool = False) -> None:
        """Send the learner's weights to the rollout engines; returns when all are on
        their way.

        With `to_teachers` (self-distillation) whatever speaks as the teacher takes them
        too, and has them on return.
        """
        await self.done()
        self._newest = None  # gone from the object store before the next ones come
        self._version, self._began_s = policy_version, time.time()
        streams = [
            actor.publish.options(num_returns="streaming").remote()
            for actor in self._fleet.learners
        ]
        buckets, *_ = await self._caller.all(
            [
                self._caller.call(f"learner[{rank}]", "publish", _collect(stream))
                for rank, stream in enumerate(streams)
            ]
        )
        published = Span.since(self._began_s)
        self._works = [
            self._work(f"learner[{rank}]", "publish", published)
            for rank in range(len(self._fleet.learners))
        ]
        self._newest = policy_version, buckets
        self._pending = [
            (
                f"rollout[{index}]",
                actor,
                holder(actor),
                actor.update.remote(policy_version, *buckets),
            )
            for index, actor in enumerate(self._fleet.rollouts)
        ]
        if to_teachers:
            await self._follow(policy_version, buckets)

    async def done(self) -> tuple[float, list[Work]]:
        """Wait until the engines have taken what was published: its seconds, and who
        did what.

        Both are told once; 0 and nothing where nothing was published since.
        """
        pending, self._pending = self._pending, []
        if not pending:
            return 0.0, []
        spans: list[Span] = await self._caller.all(
            [self._taken(*one) for one in pending]
        )
        works = self._works + [
            self._work(one[0], "update", span)
            for one, span in zip(pending, spans, strict=True)
        ]
        return sum(work.ended_s - work.began_s for work in works), works

    async def bring(self, member: Any) -> None:
        """The newest weights, to one that has just been started from the student's
        folder.
        """
        is_student = member.name.startswith("rollout")
        held = self._newest if is_student else self._followed
        if held is not None:
            version, buckets = held
            await self._caller.call(
                member.name, "update", member.update.remote(version, *buckets)
            )

    async def _taken(self, who: str, actor: Any, handle: Any, reference: Any) -> Span:
        began_s = time.time()
        try:
            span: Span = await self._caller.call(who, "update", reference)
        except (ActorDiedError, DeadlineError) as error:
            await self.revive(actor, handle, error)  # which brings the weights
            return Span.since(began_s)
        return span

    async def _follow(self, policy_version: int, buckets: Sequence[Any]) -> None:
        self._followed = policy_version, buckets
        await self._caller.all(
            [
                self._taken(
                    who,
                    actor,
                    holder(actor),
                    actor.update.remote(policy_version, *buckets),
                )
                for who, actor in self._fleet.teaching()
            ]
        )
        heads = [actor.follow_teacher.remote() for actor in self._fleet.learners]
        await self._caller.all(
            [
                self._caller.call(f"learner[{rank}]", "follow_teacher", head)
                for rank, head in enumerate(heads)
            ]
        )

    def _work(self, who: str, what: str, span: Span) -> Work:
        return Work(
            actor=who,
            what=what,
            step=self._version,
            chunk=None,
            began_s=span.began_s,
            ended_s=span.ended_s,
        )


async def _collect(stream: Any) -> list[Any]:
    """References of all that a streaming call yields; raises what it raised."""
    references = [reference async for reference in stream]
    await stream.completed()
    return references
