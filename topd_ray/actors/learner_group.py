"""All learner ranks behind one handle: every method is one call of every rank."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from topd_ray.actors.calls import Calls, all_of
from topd_ray.actors.process import Process, Reference, Stream
from topd_ray.actors.protocols import PublishedWeights, RankShare, Ref, WorkLog
from topd_ray.config import Transport
from topd_ray.engines.protocols import TransferGroup, TransferPiece, WakePart
from topd_ray.messages import Rollout, StepReport
from topd_ray.records.receipts import LearnReceipt, Span


class LearnerActorGroup:
    """A `LearnerGroup` over one process a rank.

    A rank holds a part of the training state: it is not replaced, and its loss is an
    error of the call.
    """

    def __init__(self, processes: Sequence[Process], calls: Calls) -> None:
        self._processes = processes
        self._calls = calls
        self._clock_offsets_s = [0.0] * len(processes)
        self._version: int | None = None  # unknown while a step is under way
        self._is_asleep = False

    @property
    def names(self) -> list[str]:
        """Names of the ranks, in order."""
        return [f"learner[{rank}]" for rank in range(len(self._processes))]

    async def start(self) -> None:
        """Let the ranks meet in one process group and load the student."""
        (meeting,) = self._processes[0].call("rendezvous")
        address, port = await self._calls.start(self.names[0], "rendezvous", meeting)
        loads = [
            self._calls.start(name, "start", process.call("start", address, port)[0])
            for name, process in zip(self.names, self._processes, strict=True)
        ]
        await all_of(loads)
        asked_s = time.monotonic()
        clocks_s = await self._every("clock")
        middle_s = (asked_s + time.monotonic()) / 2
        self._clock_offsets_s = [middle_s - clock_s for clock_s in clocks_s]

    async def sleep(self) -> None:
        """See `SleepingHandle`. Only between two steps."""
        self._is_asleep = True
        await self._every("sleep")

    async def wake(self, part: WakePart = "all") -> None:
        """See `SleepingHandle`. Ranks wake as a whole."""
        await self._every("wake", part)
        self._is_asleep = False

    async def accumulate(
        self, shares: Sequence[RankShare], threshold: float, log: WorkLog
    ) -> list[LearnReceipt]:
        """See `LearnerGroup`."""
        # Ray resolves references among the arguments themselves, not inside a list.
        references = [
            process.call(
                "accumulate",
                threshold,
                *share.scored,
                *share.probe_sets,
                *share.takeovers,
            )[0]
            for process, share in zip(self._processes, shares, strict=True)
        ]
        receipts: list[LearnReceipt] = await self._answers("accumulate", references)
        timed = []
        for name, offset_s, receipt in zip(
            self.names, self._clock_offsets_s, receipts, strict=True
        ):
            span = receipt.span.shifted(offset_s)
            log.worked(name, "accumulate", span, receipt.num_tokens)
            timed.append(replace(receipt, span=span))
        return timed

    async def step(self, *, skip: bool, log: WorkLog) -> StepReport:
        """See `LearnerGroup`."""
        began_s = time.monotonic()
        self._version = None
        reports: list[StepReport] = await self._every("step", skip)
        self._version = reports[0].policy_version
        for name in self.names:
            log.worked(name, "step", Span.since(began_s))
        return reports[0]

    async def abandon_step(self) -> None:
        """See `LearnerGroup`."""
        await self._every("abandon_step")

    async def publish(self, policy_version: int) -> PublishedWeights:
        """See `LearnerGroup`."""
        began_s = time.monotonic()
        self._version = policy_version
        streams = [process.stream("publish") for process in self._processes]
        buckets = await self._collected("publish", streams)
        return PublishedWeights(policy_version, tuple(buckets), Span.since(began_s))

    async def publish_again(self, policy_version: int) -> PublishedWeights | None:
        """Put weights that engines had directly into the object store.

        Returns None where the ranks hold other weights by now, or are about to, or
        sleep.
        """
        if self._version != policy_version or self._is_asleep:
            return None
        return await self.publish(policy_version)

    async def meet_engines(self) -> tuple[str, int]:
        """See `SendingLearners`."""
        (meeting,) = self._processes[0].call("meet_engines")
        address: tuple[str, int] = await self._calls.call(
            self.names[0], "meet_engines", meeting
        )
        return address

    async def open_sender(
        self, transport: Transport, group: TransferGroup, timeout_s: float
    ) -> None:
        """See `SendingLearners`."""
        await self._every("open_sender", transport, group, timeout_s)

    async def next_piece(self, *, is_first: bool) -> TransferPiece | None:
        """See `SendingLearners`."""
        pieces: list[TransferPiece | None] = await self._every("next_piece", is_first)
        return pieces[0]

    async def close_sender(self) -> None:
        """See `SendingLearners`."""
        closing = [process.interject("close_sender") for process in self._processes]
        await self._answers("close_sender", closing)

    async def follow_teacher(self) -> None:
        """See `LearnerGroup`."""
        await self._every("follow_teacher")

    async def save(self, folder: Path) -> None:
        """See `LearnerGroup`."""
        await self._every("save", folder)

    async def load(self, folder: Path) -> None:
        """See `LearnerGroup`."""
        await self._every("load", folder)

    async def save_teacher(self, folder: Path, weights: PublishedWeights) -> None:
        """See `LearnerGroup`. Rank 0 alone writes."""
        (saved,) = self._processes[0].call(
            "save_teacher", folder, weights.policy_version, *weights.buckets
        )
        await self._calls.call(self.names[0], "save_teacher", saved)

    async def load_teacher(self, folder: Path, policy_version: int) -> PublishedWeights:
        """See `LearnerGroup`."""
        began_s = time.monotonic()
        streams = [
            process.stream("load_teacher", folder, policy_version)
            for process in self._processes
        ]
        buckets = await self._collected("load_teacher", streams)
        return PublishedWeights(policy_version, tuple(buckets), Span.since(began_s))

    async def export(self, folder: Path) -> None:
        """See `LearnerGroup`."""
        await self._every("export", folder)

    async def dump(self, folder: Path, chunks: Sequence[Ref[list[Rollout]]]) -> None:
        """See `LearnerGroup`. Rank 0 alone writes."""
        (dumped,) = self._processes[0].call("dump", folder, *chunks)
        await self._calls.call(self.names[0], "dump", dumped)

    async def pin(self, core: int) -> None:
        """Bind every rank to one core (benchmarks do this)."""
        await self._every("pin", core)

    def kill(self) -> None:
        """End every rank at once."""
        for process in self._processes:
            process.kill()

    async def _every(self, method: str, *arguments: object) -> list[Any]:
        """Make the same call of every rank and wait for all answers."""
        references = [
            process.call(method, *arguments)[0] for process in self._processes
        ]
        return await self._answers(method, references)

    async def _answers(self, method: str, references: Sequence[Reference]) -> list[Any]:
        return await all_of(
            [
                self._calls.call(name, method, reference)
                for name, reference in zip(self.names, references, strict=True)
            ]
        )

    async def _collected(
        self, method: str, streams: Sequence[Stream]
    ) -> Sequence[Reference]:
        """Draw the streams of all ranks to their ends; rank 0's references."""
        drawn = await all_of(
            [
                self._calls.call(name, method, _all_references(stream))
                for name, stream in zip(self.names, streams, strict=True)
            ]
        )
        return drawn[0]


async def _all_references(stream: Stream) -> list[Reference]:
    references = [reference async for reference in stream]
    await stream.completed()
    return references
