"""What work costs, in seconds of a core or a GPU, and how long responses are."""

import heapq
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from topd_ray.seeds import derive_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """A model read over whole sequences (the learner's also goes back)."""

    call_s: float = 0.0
    """A call, or a micro-batch of the learner."""
    token_s: float = 0.0
    pair_s: float = 0.0
    """A token of a sequence and one before it: attention."""

    def seconds(self, lengths: Sequence[int], *, calls: int = 1) -> float:
        """Return the seconds for sequences of these lengths, in tokens."""
        pairs = sum(length * length / 2 for length in lengths)
        return calls * self.call_s + self.token_s * sum(lengths) + self.pair_s * pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class Decode:
    """A model that writes, one token a sequence a step."""

    step_s: float
    """Seconds of a step at any batch size: reading the weights, launching."""
    seq_s: float = 0.0
    """A sequence a step."""
    context_s: float = 0.0
    """A token of context a step: reading the cache."""
    expert_s: float = 0.0
    """Reading all experts of a mixture once."""
    expert_share: float = 1.0
    """Share of the experts that one token wakes."""

    def steps_s(self, steps: int, batch: int, context: int) -> float:
        """Return the seconds of `steps` steps of `batch` sequences.

        They begin with `context` tokens in all.
        """
        # Tokens are taken to choose their experts independently.
        awake = 1.0 - (1.0 - self.expert_share) ** batch
        step_s = self.step_s + self.expert_s * awake + self.seq_s * batch
        # Each sequence's context grows by one token a step.
        read = steps * context + batch * steps * (steps - 1) / 2
        return steps * step_s + self.context_s * read


def continuous_batching(
    decode: Decode, lengths: Sequence[int], contexts: Sequence[int], *, slots: int
) -> Iterator[tuple[float, list[int]]]:
    """Yield (seconds, sequences that end then) until all have ended.

    A waiting sequence is admitted at once. Each sequence has `lengths` tokens to write
    and `contexts` tokens before them.
    """
    # Reversed, because `pop` takes the last one.
    waiting = list(range(len(lengths)))[::-1]
    running: list[tuple[int, int]] = []
    step = 0
    context = 0
    while waiting or running:
        while waiting and len(running) < slots:
            index = waiting.pop()
            heapq.heappush(running, (step + max(1, lengths[index]), index))
            context += contexts[index]
        steps = running[0][0] - step
        seconds = decode.steps_s(steps, len(running), context)
        step = step + steps
        context = context + steps * len(running)
        ended = []
        while running and running[0][0] == step:
            index = heapq.heappop(running)[1]
            context -= contexts[index] + max(1, lengths[index])
            ended.append(index)
        yield seconds, ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """The rates of one placement: of models on hardware, or a run's own."""

    roll_out: Decode
    prompt_s: float
    """A prompt token of a rollout."""
    score: Forward
    continue_from: Decode
    continue_call_s: float
    """Beside the decode steps, a call."""
    transport_call_s: float
    transport_s: float
    """Ground cost and plan of a window."""
    learn: Forward
    step_s: float
    """The optimizer."""
    publish_s: float
    """Gathering the student and putting it where the engines can read it."""
    update_s: float
    """One engine taking it."""
    latency_s: float
    """From a call of the driver until the actor has it."""
    student_move_s: float = 0.0
    """A sleeping rollout engine moving its weights to the host, or back."""
    teacher_move_s: float = 0.0
    """A teacher's engine likewise."""
    learner_move_s: float = 0.0
    """A learner rank moving weights, gradients and optimizer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """How long prompts, responses and continuations are."""

    quantiles: tuple[float, ...]
    """Response lengths at equal steps from the shortest to the longest."""
    prompt_tokens: int
    window_tokens: float
    """Tokens that the teacher writes a window: at most `probe.window`."""
    taken_over: float = 0.45
    """Share of the tokens of the student's responses that the teacher writes instead,
    with `trajectory: takeover`. The default is what the toy world showed.
    """

    def length(self, rollout_id: str) -> int:
        """Return the length of this rollout, always the same."""
        # By rollout, not in order: placements are compared on the same responses.
        draw = random.Random(derive_seed(0, rollout_id, "length")).random()
        place = draw * (len(self.quantiles) - 1)
        low = min(int(place), len(self.quantiles) - 2)
        left = self.quantiles[low]
        right = self.quantiles[low + 1]
        return max(1, round(left + (right - left) * (place - low)))


def long_tailed(
    *, mean: float, spread: float, longest: int, num_quantiles: int = 65
) -> tuple[float, ...]:
    """Return quantiles of a log-normal law of this mean, cut at `longest`.

    `spread` is the standard deviation of the logarithm.
    """
    normal = NormalDist()
    places = [(i + 0.5) / num_quantiles for i in range(num_quantiles)]
    shape = [NormalDist.inv_cdf(normal, place) for place in places]
    # bounds of the scale; the cut pulls the mean down, so it is searched for
    low = 0.0
    high = float(longest)
    for _ in range(60):
        scale = (low + high) / 2
        drawn = [min(longest, scale * 2.718281828459045 ** (spread * z)) for z in shape]
        low, high = (scale, high) if sum(drawn) / len(drawn) < mean else (low, scale)
    return tuple(drawn)
