"""The interfaces of engines, which vllm, hf, deepspeed and fake implement.

Every back end passes the same contract suite (`tests/contract`), with transformers as
the oracle.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from numpy.typing import NDArray

from topd_ray.messages import FinishReason, Floats, HiddenStates, Ints

if TYPE_CHECKING:  # the fake engine and the driver load no torch
    import torch
    from torch import Tensor

WakePart = Literal["weights", "all"]
"""What of an engine wakes: enough to load new weights, or all of it."""
NamedArray = tuple[str, NDArray[Any]]
"""A weight under its Hugging Face name: float32, or the bits of bfloat16 in uint16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFact:
    """What is known of a weight without gathering it."""

    name: str
    """Hugging Face name."""
    dtype: str
    """Name of its torch dtype, such as `bfloat16`."""
    shape: tuple[int, ...]

    @property
    def torch_dtype(self) -> "torch.dtype":
        """Return the dtype."""
        import torch

        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def nbytes(self) -> int:
        """Return the size in bytes."""
        return math.prod(self.shape) * self.torch_dtype.itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferGroup:
    """Where learner rank 0 and the workers of all rollout engines meet."""

    address: str
    port: int
    world_size: int
    """Rank 0 and all workers."""
    buffer_bytes: int
    """Weights are packed until they are more than this; both ends must agree."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferPiece:
    """A part of a policy version, as every rollout engine is told to load it."""

    update_info: Mapping[str, Any] | None
    """What vLLM's transfer engine takes; None where the version only ends."""
    is_first: bool
    is_last: bool
    is_read_first: bool = False
    """Whether every engine must have answered before the next piece is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One sequence to decode; the result depends on it and the weights alone.

    Example::

        GenerationRequest(
            request_id="00000012.0",
            prompt_ids=[20, 21, 22],
            max_tokens=8000,
            temperature=1.0,
            top_p=1.0,
            seed=7,
            num_top=32,
        )
    """

    request_id: str
    """Name of the request, unique within a call."""
    prompt_ids: Ints
    """Token ids of the prefix, at least one."""
    max_tokens: int
    """Most tokens to decode, at least 1."""
    temperature: float
    """Divides the logits; 0 takes the most likely token."""
    top_p: float
    """Nucleus to sample from; 1 is the whole vocabulary."""
    seed: int
    """Seed of the request's random draws."""
    num_top: int
    """Number of most likely ids to return for a position.

    With 0 no log-probability is returned at all.
    """
    top_k: int = 0
    """Number of most likely tokens to sample from, before top_p; 0 for all."""
    states: bool = False
    """Whether to return hidden states; only a `TeacherEngine` does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """The N tokens that were decoded for a request."""

    request_id: str
    """Name of the request."""
    token_ids_N: Ints
    """The tokens; the last is EOS where the model stopped."""
    logp_N: Floats
    """Log-probability of each token, in nats at temperature 1 and without top_p.

    (0,) where num_top was 0.
    """
    top_ids_NM: Ints
    """The M = num_top most likely ids, best first; PAD beyond the vocabulary's size."""
    top_logp_NM: Floats
    """Their log-probabilities, as `logp_N`; -inf for PAD."""
    finish_reason: FinishReason
    """Whether the model stopped, the limit, or a cut."""
    num_overshot: int = 0
    """Tokens that were decoded behind a cut and dropped."""
    num_cached_tokens: int = 0
    """Prompt tokens found in the prefix cache; 0 for a back end without a cache."""
    states_ND: HiddenStates | None = None
    """The hidden state that predicts each token, after the final norm.

    None where the request asks for none.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The tokens of a request that is still being decoded."""

    request_id: str
    """Name of the request."""
    token_ids_N: Ints
    """All tokens so far."""


class Sleeper(Protocol):
    """What gives the memory of its GPU to others while they work."""

    def sleep(self) -> None:
        """Move the weights to the host and drop caches; does nothing asleep.

        Must not be called while a call is under way.
        """
        ...

    def wake(self, part: WakePart = "all") -> None:
        """Take the memory back, as it was, with empty caches.

        With `weights` it can load new ones and nothing else. Does nothing where that
        part is awake.
        """
        ...


class GenerationEngine(Sleeper, Protocol):
    """Decodes token ids and takes new weights in place."""

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[Generation]:
        """Yield each generation as soon as it is finished.

        The order depends on the requests alone. Stop iterating to abandon the rest; a
        later call or new weights end an earlier call, which then raises TopdError.
        """
        ...

    def load_weights(self, weights: Iterable[NamedArray]) -> None:
        """Replace all weights (Hugging Face names) and drop every cached prefix."""
        ...

    def close(self) -> None:
        """Free what the engine holds. Safe to call twice."""
        ...


class RolloutEngine(GenerationEngine, Protocol):
    """A `GenerationEngine` whose requests can be watched and cut while it decodes."""

    def generate_in_pieces(
        self,
        requests: Sequence[GenerationRequest],
        *,
        stride: int,
        cuts: Mapping[str, int],
    ) -> Iterator[list[Progress | Generation]]:
        """Yield what the requests have come to, as soon as there is something to say.

        The tokens are those of `generate`. A cut changes no token of another request.

        Args:
            requests: The sequences to decode.
            stride: Tokens of a request between two signs of its progress.
            cuts: Tokens that a request is cut to, by its name. Another thread may add
                to it while the engine decodes. A request that has so many tokens ends:
                its generation has the reason "cut". One that is finished stays as it
                is.
        """
        ...


class ReceivingEngine(GenerationEngine, Protocol):
    """A `GenerationEngine` that takes weights from the learner's memory."""

    @property
    def num_workers(self) -> int:
        """Return the number of its worker processes, one a GPU."""
        ...

    def join(self, group: TransferGroup, *, rank_offset: int) -> None:
        """Join the group of a broadcast; waits until all others have joined.

        `rank_offset`: the rank of its first worker.
        """
        ...

    def take_piece(self, piece: TransferPiece) -> None:
        """Load a piece of a version; the last one drops every cached prefix.

        Where it fails, the weights are of no version, and the engine must be replaced.
        """
        ...


class ScoringEngine(Sleeper, Protocol):
    """Runs a model over given token ids."""

    def hidden_states(
        self, sequences: Sequence[Ints], starts: Sequence[int] | None = None
    ) -> Sequence[HiddenStates]:
        """Return the last hidden states, after the final norm, of the tokens.

        Args:
            sequences: Token ids.
            starts: First token of each sequence whose state is wanted; all by default.
                What lies before it may be read from the prefix cache.

        Returns:
            One array (len - start, D) for each sequence, in their order. An engine that
            computes in bfloat16 may hand over its bits.
        """
        ...

    def load_weights(self, weights: Iterable[NamedArray]) -> None:
        """Replace all weights (Hugging Face names), when the teacher follows."""
        ...

    def close(self) -> None:
        """Free what the engine holds. Safe to call twice."""
        ...


class TeacherEngine(ScoringEngine, GenerationEngine, Protocol):
    """One copy of the teacher's weights that scores and decodes, for several threads.

    Calls share the running batch, scoring first. No call ends another, and other calls
    change no result, only the order in which generations finish. A prefix that was
    scored is in the cache for the generations that continue it. The states of a
    generation come from its decoding, and equal those of `hidden_states` up to
    rounding. New weights and `close` end all calls, which then raise TopdError.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerOutcome:
    """How one optimizer step ended on this rank (the same on every rank)."""

    grad_norm: float
    """Norm of the normalised gradient, before clipping; infinite where skipped."""
    lr: float
    """Learning rate of the step."""
    skipped: bool
    """Whether no weight was moved."""


class WeightSource(Protocol):
    """The weights of a learner rank, for a transfer."""

    def facts(self) -> list[WeightFact]:
        """Return what `tensors` yields, in its order; gathers nothing."""
        ...

    def tensors(self) -> "Iterator[tuple[str, Tensor]]":
        """Yield every weight, whole, on the device of the engine, as `weights` does.

        Every rank gets them and must exhaust the iterator.
        """
        ...


class WeightSender(Protocol):
    """A learner rank's end of a transfer."""

    def pieces(self, source: WeightSource) -> Iterator[TransferPiece | None]:
        """Yield the pieces of a version; what ranks above 0 yield is not used.

        Work is done when the next piece is asked for: a broadcast begins when the
        engines have been told of its piece. Every rank must exhaust it.
        """
        ...

    def close(self) -> None:
        """Leave the group, also while another thread waits in it."""
        ...


class TrainingEngine(WeightSource, Protocol):
    """Holds a sharded module and its optimizer; the module computes its own loss."""

    def sleep(self) -> None:
        """Move weights, gradients and optimizer to the host; does nothing asleep.

        Only between two steps: an accumulated gradient would be lost.
        """
        ...

    def wake(self) -> None:
        """Take them back to the device, bit for bit; does nothing awake."""
        ...

    def accumulate(self, *inputs: "Tensor | bool") -> tuple[float, ...]:
        """Run the module forward and backward, and add to the gradient.

        All ranks must call it equally often between two steps.

        Args:
            inputs: The arguments of the module's forward pass.

        Returns:
            The module's outputs; the first is the (summed) loss to descend.
        """
        ...

    def all_sum(self, values: Sequence[float]) -> tuple[float, ...]:
        """Return each value's sum over all ranks, in float64, on every rank."""
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
        """Divide the gradient by `normaliser`, clip it and update the weights.

        The gradient is the sum over micro-batches and ranks. Where `skip` is set or the
        gradient is not finite, no weight and no optimizer state changes, the gradient
        is dropped, and the outcome says `skipped`.
        """
        ...

    def weights(self) -> Iterator[NamedArray]:
        """Yield every weight of the module, whole, in a fixed order.

        Every rank must exhaust the iterator. Rank 0 alone gets the arrays; on the
        others they are empty.
        """
        ...

    def whole(self, weight: "Tensor") -> "Tensor":
        """Return a full copy of one weight on every rank; every rank must call it."""
        ...

    def save(self, directory: Path) -> None:
        """Write this rank's share of weights, optimizer and schedule."""
        ...

    def load(self, directory: Path) -> None:
        """Restore what `save` wrote, with any number of ranks."""
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
    "Progress",
    "ReceivingEngine",
    "RolloutEngine",
    "ScoringEngine",
    "Sleeper",
    "TeacherEngine",
    "TrainingEngine",
    "TransferGroup",
    "TransferPiece",
    "WakePart",
    "WeightFact",
    "WeightSender",
    "WeightSource",
]
