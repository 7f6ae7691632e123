"""Roles that share GPUs and do not fit there together work one after the other.

    rollouts ──> teacher and probe workers ──> learner ──> new weights ──> rollouts
       every chunk has come      every chunk is judged    published, asleep

Each arrow is a barrier of the step: all that the role on its left owes has come, then
that role sleeps, and when it does the next one wakes. A role that shares its GPUs with
no other takes no turns: it is always awake, and there is no barrier in front of it.
"""

import asyncio
from collections.abc import Mapping, Sequence
from enum import Enum

from topd_ray.actors.calls import all_of
from topd_ray.actors.protocols import Fleet, SleepingHandle
from topd_ray.actors.roles import ROLES, RoleName
from topd_ray.engines.protocols import WakePart
from topd_ray.records.receipts import Span
from topd_ray.records.timeline import Work

_RELEASE_S = 3.0
"""Longest time that the driver of a GPU takes to have a dead process's memory again."""


class _State(Enum):
    """A state of a role beside the parts of it that are awake."""

    ASLEEP = "asleep"
    UNKNOWN = "unknown"
    """A change of it was not finished: its calls are made again before the next."""


class RoleTurns:
    """Says who of the roles that take turns is awake, and changes it."""

    def __init__(self, fleet: Fleet, *, awake: RoleName = "learner") -> None:
        """`awake`: the one of `fleet.takes_turns` that does not sleep now."""
        self._takers = fleet.takes_turns
        self._handles: Mapping[RoleName, Sequence[SleepingHandle]] = {
            "rollout": fleet.rollouts,
            "teacher": fleet.decoders,
            "learner": [fleet.learners],
        }
        self._names: Mapping[RoleName, Sequence[str]] = {
            "rollout": [engine.name for engine in fleet.rollouts],
            "teacher": [decoder.name for decoder in fleet.decoders],
            "learner": fleet.learners.names,
        }
        self._states: dict[RoleName, WakePart | _State] = dict.fromkeys(
            ROLES, _State.ASLEEP
        )
        self._states[awake] = "all"
        self._changing = asyncio.Lock()
        self._spans: list[tuple[RoleName, str, Span]] = []

    @property
    def are_taken(self) -> bool:
        """Whether any role takes turns."""
        return bool(self._takers)

    def has(self, role: RoleName) -> bool:
        """Return whether a role takes turns: a barrier stands in front of its work."""
        return role in self._takers

    async def to(self, role: RoleName, part: WakePart = "all") -> None:
        """Let a role work, alone of those that take turns.

        Calls that were submitted to the others before are served first. Does nothing
        where it is awake already, or takes no turns.

        Args:
            role: Whose calls come next.
            part: What of it must be awake: with `weights` it can load new ones.
        """
        if role not in self._takers:
            return
        async with self._changing:
            for other in ROLES:
                if other != role and other in self._takers:
                    await self._put_to_sleep(other)
            await self._wake(role, part)

    async def leave_to(self, role: RoleName) -> None:
        """End the actors of the other roles that take turns, and wake `role`.

        For the end of a session: a call of theirs that is under way would hold up their
        sleep, for as long as rollouts take.
        """
        if role not in self._takers:
            return
        async with self._changing:
            awake = [
                other
                for other in self._takers
                if other != role and self._states[other] is not _State.ASLEEP
            ]
            for other in awake:
                self._states[other] = _State.ASLEEP
                for handle in self._handles[other]:
                    handle.kill()
            if awake:
                await asyncio.sleep(_RELEASE_S)
            await self._wake(role, "all")

    def works(self, step: int) -> list[Work]:
        """Return the changes since the last call, as work of the actors in `step`."""
        spans = self._spans
        self._spans = []
        return [
            Work(
                actor=name,
                what=what,
                step=step,
                chunk=None,
                began_s=span.began_s,
                ended_s=span.ended_s,
            )
            for role, what, span in spans
            for name in self._names[role]
        ]

    async def _put_to_sleep(self, role: RoleName) -> None:
        if self._states[role] is _State.ASLEEP:
            return
        began_s = _now_s()
        self._states[role] = _State.UNKNOWN
        await all_of([handle.sleep() for handle in self._handles[role]])
        self._states[role] = _State.ASLEEP
        self._spans.append((role, "sleep", Span(began_s, _now_s())))

    async def _wake(self, role: RoleName, part: WakePart) -> None:
        if self._states[role] in ("all", part):
            return
        began_s = _now_s()
        self._states[role] = _State.UNKNOWN
        await all_of([handle.wake(part) for handle in self._handles[role]])
        self._states[role] = part
        self._spans.append((role, "wake", Span(began_s, _now_s())))


class Barrier:
    """Opens when all chunks of a step have come to it, and runs what opens it once."""

    def __init__(self, num_chunks: int) -> None:
        self._num_to_come = num_chunks
        self._is_open = asyncio.Event()

    async def reach(self, turns: RoleTurns, role: RoleName) -> None:
        """Come with one chunk; return when every chunk has, and it is the role's turn.

        An error of the change of turns is raised to the chunk that came last.
        """
        self._num_to_come -= 1
        if self._num_to_come == 0:
            await turns.to(role)
            self._is_open.set()
        await self._is_open.wait()


def _now_s() -> float:
    """Return the time of the loop: `topd plan` runs in virtual seconds."""
    return asyncio.get_running_loop().time()
