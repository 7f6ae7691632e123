"""The types at the boundary of the actors: what may be called, and what comes back.

Four fleets implement these protocols: Ray actors and in-process workers
(`actors/handles.py`), and the simulated actors of `topd plan`.
A method that only submits a call is a plain function that returns an awaitable: an
actor serves its calls in the order of submission, and the caller decides when to wait.
"""

from collections.abc import AsyncIterator, Awaitable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from topd_ray.actors.roles import RoleName
from topd_ray.config import Transport
from topd_ray.engines.protocols import TransferGroup, TransferPiece, WakePart
from topd_ray.errors import TopdError
from topd_ray.evaluation import Accuracy
from topd_ray.messages import (
    CandidateSet,
    Ints,
    PartialRollout,
    ProbeSet,
    Prompt,
    Rollout,
    RolloutRequest,
    ScoredRollout,
    StepReport,
    Takeover,
)
from topd_ray.records.receipts import (
    ContinueReceipt,
    LearnReceipt,
    ProbeReceipt,
    ReadReceipt,
    ResampleReceipt,
    RewriteReceipt,
    RolloutReceipt,
    ScoreReceipt,
    Span,
    TakeoverReceipt,
)
from topd_ray.weights.buckets import WeightBucket

T_co = TypeVar("T_co", covariant=True)


class Ref(Protocol[T_co]):
    """A reference to a value that an actor holds or will hold.

    The driver passes references on and fetches receipts only. Awaiting a reference
    fetches the value, or raises what the call raised.
    """

    def __await__(self) -> Generator[object, None, T_co]: ...


class WorkLog(Protocol):
    """Receives the time span of every finished call: a chunk, or a step as a whole."""

    def worked(self, actor: str, what: str, span: Span, num_tokens: int = 0) -> None:
        """Receive when `actor` worked on the call `what`."""
        ...


@dataclass(frozen=True, slots=True)
class RolloutChunk:
    """Finished rollouts that one engine hands on together."""

    rollouts: Ref[list[Rollout]]
    receipt: RolloutReceipt


@dataclass(frozen=True, slots=True)
class PartialRollouts:
    """Beginnings of rollouts that an engine still decodes."""

    partials: Ref[list[PartialRollout]]


@dataclass(frozen=True, slots=True)
class ReadAhead:
    """The forks found in such beginnings: one set each; the receipt names them."""

    forks: Ref[list[CandidateSet]]
    receipt: ReadReceipt


@dataclass(frozen=True, slots=True)
class Rewritten:
    """The teacher's rewrites of a chunk; the receipt names the rollouts left out."""

    rollouts: Ref[list[Rollout]]
    receipt: RewriteReceipt


@dataclass(frozen=True, slots=True)
class Scored:
    """A scored chunk: one reference a rollout, so that each can go to its own rank."""

    rollouts: tuple[Ref[ScoredRollout], ...]
    candidates: Ref[list[CandidateSet]]
    receipt: ScoreReceipt


@dataclass(frozen=True, slots=True)
class Resampled:
    """The student's fresh windows of a chunk (D3), one (W, K) array a rollout."""

    windows: Ref[list[Ints]]
    receipt: ResampleReceipt


@dataclass(frozen=True, slots=True)
class Continued:
    """The teacher's windows of a chunk, one (W, K) array a rollout."""

    windows: Ref[list[Ints]]
    receipt: ContinueReceipt


@dataclass(frozen=True, slots=True)
class Probed:
    """The probed windows of a chunk: one reference a rollout."""

    probe_sets: tuple[Ref[ProbeSet], ...]
    receipt: ProbeReceipt


@dataclass(frozen=True, slots=True)
class TakenOver:
    """The teacher's takeovers of a chunk: one reference a rollout.

    The receipt names the rollouts left out.
    """

    takeovers: tuple[Ref[Takeover | None], ...]
    receipt: TakeoverReceipt


@dataclass(frozen=True, slots=True)
class RankShare:
    """What one learner rank trains on in one call."""

    rollout_ids: tuple[str, ...]
    scored: tuple[Ref[ScoredRollout], ...]
    probe_sets: tuple[Ref[ProbeSet], ...]
    """One a rollout, in the same order; empty where nothing is probed."""
    takeovers: tuple[Ref[Takeover | None], ...] = ()
    """Likewise; empty where the teacher takes nothing over."""


@dataclass(frozen=True, slots=True)
class PublishedWeights:
    """One policy version in the object store: one copy a node for all engines on it."""

    policy_version: int
    buckets: tuple[Ref[WeightBucket], ...]
    span: Span


class SleepingHandle(Protocol):
    """What gives its GPUs to the roles that it shares them with."""

    async def sleep(self) -> None:
        """Free the memory of its GPUs, after the calls submitted before.

        Asleep it serves no call but `wake`. One that is lost meanwhile is replaced, and
        its successor sleeps.
        """
        ...

    async def wake(self, part: WakePart = "all") -> None:
        """Take the memory back: all of it, or enough to load new weights.

        One that was lost asleep is replaced here, when it has its GPUs again.
        """
        ...

    def kill(self) -> None:
        """End its processes at once, in the middle of a call too."""
        ...


class RolloutHandle(SleepingHandle, Protocol):
    """One rollout engine with the student's weights."""

    @property
    def name(self) -> str:
        """Name in errors and metrics, e.g. `rollout[0]`."""
        ...

    def roll_out(
        self,
        requests: Sequence[RolloutRequest],
        *,
        policy_version: int,
        room: int,
        stride: int | None = None,
    ) -> AsyncIterator[RolloutChunk | PartialRollouts]:
        """Submit the requests now; yield chunks as their rollouts finish.

        At most `room` chunks wait to be taken; then the engine pauses. With a stride,
        beginnings of rollouts come in between, after so many tokens of each.
        """
        ...

    async def cut(self, cuts: Mapping[str, int]) -> None:
        """Cut rollouts that are being decoded to so many tokens; do not wait for it."""
        ...

    async def resample(
        self, candidates: Ref[list[CandidateSet]], policy_version: int, log: WorkLog
    ) -> Resampled:
        """Decode a fresh window from every candidate (D3)."""
        ...

    def evaluate(self, problems: Sequence[Prompt]) -> Awaitable[Accuracy]:
        """Submit held-out problems now; await their accuracy."""
        ...

    def update(self, weights: PublishedWeights) -> Awaitable[Span]:
        """Submit new weights now; await the time span of their load."""
        ...

    def forget_weights(self) -> None:
        """Release the references to the newest weights, before others are published."""
        ...


class DecoderHandle(SleepingHandle, Protocol):
    """An engine that decodes as the teacher."""

    @property
    def name(self) -> str:
        """Name in errors and metrics."""
        ...

    async def continue_from(
        self, candidates: Ref[list[CandidateSet]], log: WorkLog
    ) -> Continued:
        """Decode the teacher's window from every candidate."""
        ...

    async def rewrite(
        self, rollouts: Ref[list[Rollout]], prompts: Sequence[Prompt], log: WorkLog
    ) -> Rewritten:
        """Rewrite the rollouts (TRD) and filter the rewrites by their outcome."""
        ...

    def update(self, weights: PublishedWeights) -> Awaitable[Span]:
        """Submit new weights now (self-distillation); await the span of their load."""
        ...


class TeacherHandle(DecoderHandle, Protocol):
    """One teacher engine: it scores rollouts and continues from their candidates."""

    async def score(
        self, rollouts: Ref[list[Rollout]], num_rollouts: int, log: WorkLog
    ) -> Scored:
        """Score a chunk of `num_rollouts` rollouts and pick its candidates."""
        ...

    async def read_ahead(
        self,
        partials: Sequence[Ref[list[PartialRollout]]],
        known: frozenset[str],
        threshold: float,
        log: WorkLog,
    ) -> ReadAhead:
        """Read beginnings of rollouts and find the forks that are certain.

        `known`: rollouts whose fork was found before. `threshold`: nats of surprise
        above which a token is an error, where the verdict asks for it.
        """
        ...

    async def take_over(
        self,
        candidates: Ref[list[CandidateSet]],
        probe_sets: Sequence[Ref[ProbeSet]],
        answers: Mapping[str, str],
        threshold: float,
        num_rollouts: int,
        log: WorkLog,
        known: frozenset[str] = frozenset(),
    ) -> TakenOver:
        """Find the fork of each rollout and go on from there as the teacher.

        `probe_sets`: one a rollout, or none where the verdict asks for none. `answers`:
        the right answer by rollout id, where it is known. `known`: rollouts whose
        takeover is there already.
        """
        ...


class ProberHandle(DecoderHandle, Protocol):
    """One probe worker; it decodes where `probe.engine` is a section."""

    async def probe(
        self,
        candidates: Ref[list[CandidateSet]],
        teacher_windows: Ref[list[Ints]],
        student_windows: Ref[list[Ints]] | None,
        num_rollouts: int,
        log: WorkLog,
    ) -> Probed:
        """Solve the transport between both windows of every candidate.

        `student_windows` are fresh ones (D3); None: the rollouts' own tokens.
        """
        ...


class LearnerGroup(SleepingHandle, Protocol):
    """All learner ranks. Every method is one collective call of every rank."""

    @property
    def names(self) -> list[str]:
        """Names of the ranks, in order."""
        ...

    async def accumulate(
        self, shares: Sequence[RankShare], threshold: float, log: WorkLog
    ) -> list[LearnReceipt]:
        """Add the gradient of one share a rank; one receipt a rank."""
        ...

    async def step(self, *, skip: bool, log: WorkLog) -> StepReport:
        """Update the weights, or drop the accumulated gradient with `skip`."""
        ...

    async def abandon_step(self) -> None:
        """Drop what has been accumulated since the last step."""
        ...

    async def publish(self, policy_version: int) -> PublishedWeights:
        """Put the weights, which are of `policy_version`, into the object store."""
        ...

    async def follow_teacher(self) -> None:
        """Make the student's present output head the teacher's (self-distillation)."""
        ...

    async def save(self, folder: Path) -> None:
        """Write the state of the learner; only between steps."""
        ...

    async def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        ...

    async def save_teacher(self, folder: Path, weights: PublishedWeights) -> None:
        """Write the weights that the teacher holds, unless they are the student's."""
        ...

    async def load_teacher(self, folder: Path, policy_version: int) -> PublishedWeights:
        """Publish what `save_teacher` wrote; every rank takes the teacher's head."""
        ...

    async def export(self, folder: Path) -> None:
        """Write the student as a Hugging Face folder."""
        ...

    async def dump(self, folder: Path, chunks: Sequence[Ref[list[Rollout]]]) -> None:
        """Write the rollouts of a step for `topd replay`."""
        ...


class SendingLearners(Protocol):
    """All learner ranks, as the senders of a direct transfer."""

    @property
    def names(self) -> list[str]:
        """Names of the ranks, in order."""
        ...

    async def meet_engines(self) -> tuple[str, int]:
        """Open a port on rank 0 where the engines meet it; return its address."""
        ...

    async def open_sender(
        self, transport: Transport, group: TransferGroup, timeout_s: float
    ) -> None:
        """Join the engines in a group; return when all have joined."""
        ...

    async def next_piece(self, *, is_first: bool) -> TransferPiece | None:
        """Return the next piece of the weights for the engines; None at the end."""
        ...

    async def close_sender(self) -> None:
        """Leave the group at once, also while a call of `next_piece` waits in it."""
        ...


class ReceivingHandle(Protocol):
    """One rollout engine, as a receiver of a direct transfer."""

    @property
    def name(self) -> str:
        """Name in errors and metrics."""
        ...

    @property
    def num_starts(self) -> int:
        """Return the number of processes that have had its place."""
        ...

    def update(self, weights: PublishedWeights) -> Awaitable[Span]:
        """Submit weights from the object store now; await the span of their load."""
        ...

    def join(self, group: TransferGroup, rank_offset: int) -> Awaitable[None]:
        """Submit the call that joins the group; await its end."""
        ...

    def take_piece(self, policy_version: int, piece: TransferPiece) -> Awaitable[Span]:
        """Submit a piece now; await the time span of its load.

        An engine that is lost is not replaced: the caller decides what it loads then.
        """
        ...

    async def replace(
        self, error: TopdError, weights: PublishedWeights, *, is_loss: bool
    ) -> Span:
        """Replace the engine by one that loads `weights`; return the span of both.

        Args:
            error: Why. It is raised where no replacement is granted.
            weights: A version in the object store.
            is_loss: Whether it counts against `cluster.max_failures`.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectEnds:
    """Both ends of a transfer from the learner's memory to that of the engines."""

    transport: Transport
    learners: SendingLearners
    engines: Sequence[ReceivingHandle]
    workers: int
    """Worker processes of one engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Handles of the four kinds of actor of one session."""

    rollouts: Sequence[RolloutHandle]
    teachers: Sequence[TeacherHandle]
    probers: Sequence[ProberHandle]
    learners: LearnerGroup
    direct: DirectEnds | None = None
    """None where weights travel through the object store."""
    takes_turns: frozenset[RoleName] = frozenset()
    """Roles that sleep while others of these work; all but the learner sleep when the
    fleet has started.
    """

    @property
    def decoders(self) -> list[DecoderHandle]:
        """Everything that speaks as the teacher."""
        return [*self.teachers, *self.probers]

    @property
    def names(self) -> list[str]:
        """Names of all actors."""
        engines = [engine.name for engine in self.rollouts]
        decoders = [decoder.name for decoder in self.decoders]
        return engines + decoders + self.learners.names
