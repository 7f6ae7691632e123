"""What simulated actors share: the config, the rates, and rollouts as lengths."""

import asyncio
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from topd_ray.actors.protocols import Ref
from topd_ray.candidates.select import num_to_pick
from topd_ray.config import Config
from topd_ray.errors import TopdError
from topd_ray.simulate.rates import Decode, Rates, Workload, continuous_batching

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A rollout on its way: lengths only."""

    name: str
    prompt_tokens: int
    num_tokens: int
    """Response tokens."""
    num_candidates: int

    @property
    def length(self) -> int:
        """Tokens of prompt and response."""
        return self.prompt_tokens + self.num_tokens


class PieceRef(Generic[T]):
    """A reference to messages of which only the lengths are simulated."""

    def __init__(self, pieces: Iterable[Piece]) -> None:
        self.pieces = tuple(pieces)

    def __await__(self) -> Generator[Any, None, T]:
        yield from ()
        raise TopdError("simulation: a message has lengths and no content to fetch")


def pieces_of(reference: Ref[Any]) -> tuple[Piece, ...]:
    """Return the lengths behind a reference that a simulated actor made."""
    assert isinstance(reference, PieceRef)
    return reference.pieces


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The run that is simulated."""

    config: Config
    rates: Rates
    workload: Workload

    def piece(self, name: str) -> Piece:
        """Return the rollout of this name: its length depends on the name alone."""
        candidates = self.config.candidates
        longest = self.config.rollout.max_response_tokens
        num_tokens = min(self.workload.length(name), longest)
        num_candidates = 0
        if self.config.uses_probes:
            wanted = num_to_pick(
                num_tokens,
                fraction=candidates.fraction,
                min_count=candidates.min_per_rollout,
            )
            eligible = max(0, num_tokens - candidates.min_window + 1)
            num_candidates = min(wanted, eligible)
        return Piece(
            name=name,
            prompt_tokens=self.workload.prompt_tokens,
            num_tokens=num_tokens,
            num_candidates=num_candidates,
        )

    def row_tokens(self, piece: Piece) -> int:
        """Return the tokens that the learner reads for a rollout, with its branches."""
        branches = (
            self.config.probe.student == "resample"
            and self.config.objective.lambda_traj > 0
        )
        window = self.config.probe.window if branches else 0
        return piece.length + window * piece.num_candidates

    def windows_s(self, decode: Decode, pieces: Sequence[Piece], slots: int) -> float:
        """Return the seconds to decode a window from every candidate."""
        contexts: list[int] = []
        for piece in pieces:
            # candidates lie anywhere in the response: in its middle on average
            middle = piece.prompt_tokens + piece.num_tokens // 2
            contexts += [middle] * piece.num_candidates
        lengths = [round(self.workload.window_tokens)] * len(contexts)
        return _batched_s(decode, lengths, contexts, slots)

    def rewrites_s(self, decode: Decode, pieces: Sequence[Piece], slots: int) -> float:
        """Return the seconds to rewrite rollouts, each as long as the attempt.

        The context is the prompt with the attempt in it.
        """
        lengths = [piece.num_tokens for piece in pieces]
        contexts = [piece.length for piece in pieces]
        return _batched_s(decode, lengths, contexts, slots)

    def takeovers_s(self, decode: Decode, pieces: Sequence[Piece], slots: int) -> float:
        """Return the seconds to go on from the forks, as the teacher."""
        lengths = [self.taken_over_tokens(piece) for piece in pieces]
        contexts = [
            piece.length - length for piece, length in zip(pieces, lengths, strict=True)
        ]
        return _batched_s(decode, lengths, contexts, slots)

    def decoded_tokens(self, piece: Piece) -> int:
        """Return the response tokens of a rollout that the student decodes.

        A rollout that is stopped ends at its fork at once: the tokens decoded until the
        engine hears of it are few beside it.
        """
        if self.config.takeover.stride is None:
            return piece.num_tokens
        return piece.num_tokens - self.taken_over_tokens(piece)

    def taken_over_tokens(self, piece: Piece) -> int:
        """Return the tokens of a rollout that the teacher writes.

        Every rollout has the mean share, up to `takeover.tokens`: in a run some have
        no fork, and some an early one.
        """
        share = round(self.workload.taken_over * piece.num_tokens)
        return max(1, min(share, self.config.takeover.tokens or share))


def num_micro_batches(lengths: Sequence[int], budget: int) -> int:
    """Return the micro-batches of `budget` tokens; a longer row has one to itself."""
    batches = 0
    room = 0
    for length in lengths:
        if length > room:
            batches += 1
            room = budget
        room -= length
    return batches


def now_s() -> float:
    """Return the virtual time."""
    return asyncio.get_running_loop().time()


def _batched_s(
    decode: Decode, lengths: Sequence[int], contexts: Sequence[int], slots: int
) -> float:
    steps = continuous_batching(decode, lengths, contexts, slots=slots)
    return sum(seconds for seconds, _ in steps)
