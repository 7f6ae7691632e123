"""What a stage may ask of an engine. Back ends: vllm, hf, deepspeed, fake: one file
each.

Every back end passes the same contract suite (`tests/contract`), with transformers as
the oracle.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from topd_ray.messages import FinishReason, Floats, Ints

NamedArray = tuple[str, NDArray[Any]]
"""A weight under its Hugging Face name: float32, or the bits of bfloat16 in uint16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """Token ids in; the answer depends on nothing but this request and the weights."""

    request_id: str
    prompt_ids: Ints
    max_tokens: int
    temperature: float
    """0 is greedy."""
    top_p: float
    seed: int
    num_top: int
    """How many of the most likely ids to return a position; 0 for none, and then no
    logp either.
    """
    top_k: int = 0
    """Only the so many most likely tokens are drawn from (before top_p); 0 for all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """Token ids out. The EOS token belongs to the response when the model stopped by
    itself.
    """

    request_id: str
    token_ids_N: Ints
    logp_N: Floats
    """Log-probability (nats, temperature 1, before top_p) of each token; (0,) if
    num_top was 0.
    """
    top_ids_NM: Ints
    """Best first, M = num_top (fewer ids in the vocabulary: PAD, with logp -inf)."""
    top_logp_NM: Floats
    finish_reason: FinishReason
    num_cached_tokens: int = 0
    """Prompt tokens that were found in the prefix cache; 0 of a back end that has
    none.
    """


class GenerationEngine(Protocol):
    """Decodes token ids and takes new weights in place."""

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[Generation]:
        """Yield each generation as soon as it is finished, in an order fixed by the
        requests.

        Stop iterating to abandon the rest; a later call or new weights end an earlier
        call too.
        """
        ...

    def load_weights(self, weights: Iterable[NamedArray]) -> None:
        """Replace all weights (Hugging Face names) and drop every cached prefix."""
        ...

    def close(self) -> None:
        """Free what the engine holds. Safe to call twice."""
        ...


class ScoringEngine(Protocol):
    """Runs a model over given token ids."""

    def hidden_states(self, sequences: Sequence[Ints]) -> list[Floats]:
        """Last hidden state after the final norm of every token: one (len, D) array a
        sequence.
        """
        ...

    def load_weights(self, weights: Iterable[NamedArray]) -> None:
        """Replace all weights (Hugging Face names); for a teacher that follows the
        student.
        """
        ...

    def close(self) -> None:
        """Free what the engine holds. Safe to call twice."""
        ...


class TeacherEngine(ScoringEngine, GenerationEngine, Protocol):
    """One copy of the teacher's weights for both jobs; several threads may ask at once.

    Calls share the running batch, scoring first; none ends another, and the company
    changes no answer (only the order in which generations finish). A prefix that was
    scored is in the cache for the generations behind it. New weights or `close` end all
    calls: they raise TopdError.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerOutcome:
    """How one optimizer step ended on this rank (the same on every rank)."""

    grad_norm: float
    """Of the normalised gradient, before clipping."""
    lr: float
    skipped: bool


class TrainingEngine(Protocol):
    """Owns the sharded student and its optimizer; knows nothing of the loss."""

    def accumulate(self, *inputs: Any) -> tuple[float, ...]:
        """Forward and backward of the module; its first output is the (summed) loss to
        descend.

        All ranks call it equally often between two steps. Returns the module's outputs
        as floats.
        """
        ...

    def all_sum(self, values: Sequence[float]) -> tuple[float, ...]:
        """Each value summed over all ranks, in float64; every rank gets the same
        sums.
        """
        ...

    def all_max(self, value: int) -> int:
        """Return the largest of all ranks' values, on every rank."""
        ...

    def drop_gradient(self) -> None:
        """Drop the gradient accumulated since the last step; move no weight.

        Every rank must call it, after at least one `accumulate`.
        """
        ...

    def step(self, *, normaliser: int, skip: bool = False) -> OptimizerOutcome:
        """Divide the gradient (summed over micro-batches and ranks) by `normaliser`;
        clip; update.

        Where `skip` is set or the gradient is not finite, no weight and no optimizer
        state changes, the gradient is dropped, and the outcome says `skipped`.
        """
        ...

    def weights(self) -> Iterator[NamedArray]:
        """Every weight of the module, whole, in a fixed order; each rank must exhaust
        it.

        Only rank 0 gets the arrays; on the others they are empty.
        """
        ...

    def whole(self, weight: Any) -> Any:
        """A full copy of one weight of the module, on every rank; each rank must call
        it.
        """
        ...

    def save(self, directory: Path) -> None:
        """Write this rank's shard of weights, optimizer and schedule into
        `directory`.
        """
        ...

    def load(self, directory: Path) -> None:
        """Read back what `save` wrote."""
        ...

    def close(self) -> None:
        """Leave the process group."""
        ...


__all__ = [
    "Generation",
    "GenerationEngine",
    "GenerationRequest",
    "NamedArray",
    "OptimizerOutcome",
    "ScoringEngine",
    "TeacherEngine",
    "TrainingEngine",
]
