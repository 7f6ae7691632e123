"""Rates of a real run, from its trace and metrics: `run.trace=true` leaves both.

A call's span holds the time in which other actors had its core. With n actors at work
on c cores each gets c / n of one, so a span is first cut down to the seconds of its
own; fixed and per-token costs are then non-negative least squares over the calls of a
stage. What is left between the calls (messages, Python in the driver) becomes a
latency, chosen so that a simulation of the fitted run takes as long as the run did.
"""

import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from topd_ray.candidates.select import num_to_pick
from topd_ray.config import Config, load_config
from topd_ray.errors import UserError
from topd_ray.records.timeline import Work, read_trace
from topd_ray.simulate.fit_rollouts import (
    Call,
    FittedRollouts,
    fit_rollouts,
    least_squares,
)
from topd_ray.simulate.rates import (
    Decode,
    Forward,
    Rates,
    Workload,
    continuous_batching,
)
from topd_ray.simulate.simulation import simulate

TRACE = "trace.json"
_MOST_LATENCY_S = 0.1
# Fewer have no median that one slow step leaves alone.
_MIN_STEPS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """The rates of a run, and its workload."""

    config: Config
    rates: Rates
    workload: Workload
    step_s: float
    """Median of its steady steps."""


def fit_run(path: Path, *, cores: int, prompt_tokens: int) -> Fitted:
    """Return the rates of the run in a folder.

    The first step, which warms engines up, is left out. `prompt_tokens` is a prompt's
    mean length. Raises UserError where the run was not traced or is too short.
    """
    folder = path / TRACE
    if not folder.is_file():
        raise UserError(
            f"{folder}: no such file; train with run.trace=true to leave one"
        )
    config = load_config(path / "config.yaml")
    works = read_trace(folder)
    lines = (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    walls = {line["step"]: line["step/wall_s"] for line in map(json.loads, lines)}
    return fit(
        config,
        works,
        list(walls.values())[1:],
        cores=cores,
        prompt_tokens=prompt_tokens,
    )


def fit(
    config: Config,
    works: Sequence[Work],
    walls_s: Sequence[float],
    *,
    cores: int,
    prompt_tokens: int,
) -> Fitted:
    """Return rates from the works of a run whose steady steps took `walls_s`."""
    first = min(work.step for work in works)
    calls: dict[str, list[Call]] = defaultdict(list)
    for work, seconds in zip(works, own_seconds(works, cores=cores), strict=True):
        if work.step > first:
            calls[work.what].append((work, seconds))
    if len(walls_s) < _MIN_STEPS:
        raise UserError(
            f"{len(walls_s)} steady steps to fit rates on; take a run of"
            f" {_MIN_STEPS + 1} or more"
        )
    if not calls["roll_out"]:
        raise UserError("no rollouts in the trace; was it written by `topd train`?")
    if calls["read_ahead"]:
        raise UserError(
            f"the run stopped its rollouts at their forks (takeover.stride="
            f"{config.takeover.stride}), so nothing says how long they would have been;"
            " take a run with takeover.stride=null: it has the same rates"
        )
    rollouts = fit_rollouts(config, calls["roll_out"], prompt_tokens=prompt_tokens)
    workload = _workload(config, rollouts.lengths, calls, prompt_tokens)
    rates = _rates(config, calls, workload, rollouts)
    step_s = statistics.median(walls_s)
    return Fitted(
        config=config,
        rates=_with_latency(config, rates, workload, cores=cores, step_s=step_s),
        workload=workload,
        step_s=step_s,
    )


def own_seconds(works: Sequence[Work], *, cores: int) -> list[float]:
    """Return the core seconds of each work, where all at work share `cores` evenly."""
    edges = sorted({edge for work in works for edge in (work.began_s, work.ended_s)})
    change = dict.fromkeys(edges, 0)
    for work in works:
        change[work.began_s] += 1
        change[work.ended_s] -= 1
    running = 0
    served = 0.0
    served_at = {edges[0]: 0.0} if edges else {}
    # `served` is what a work that ran from the start would have had by then; each work
    # had the difference between its two edges.
    for left, right in pairwise(edges):
        running += change[left]
        served += (right - left) * min(1.0, cores / max(running, 1))
        served_at[right] = served
    return [served_at[work.ended_s] - served_at[work.began_s] for work in works]


def _workload(
    config: Config,
    lengths: Sequence[int],
    calls: dict[str, list[Call]],
    prompt_tokens: int,
) -> Workload:
    written = sum(work.num_tokens for work, _ in calls[_decoding(calls)])
    candidates = config.candidates
    windows = sum(
        num_to_pick(
            length, fraction=candidates.fraction, min_count=candidates.min_per_rollout
        )
        for length in lengths
    )
    return Workload(
        quantiles=tuple(float(q) for q in np.quantile(lengths, np.linspace(0, 1, 65))),
        prompt_tokens=prompt_tokens,
        window_tokens=min(config.probe.window, max(1.0, written / windows)),
        taken_over=sum(work.num_tokens for work, _ in calls["take_over"])
        / sum(lengths),
    )


def _decoding(calls: dict[str, list[Call]]) -> str:
    """Return the call in which the teacher decodes: its own, or a probe's."""
    return "continue_from" if calls["continue_from"] else "probe"


def _rates(
    config: Config,
    calls: dict[str, list[Call]],
    workload: Workload,
    rollouts: FittedRollouts,
) -> Rates:
    size = config.rollout.chunk_size
    prompt = workload.prompt_tokens
    score = _forward(calls["score"], extra=size * prompt)
    if calls["rewrite"]:
        continue_from = _rewrite(config, calls, score, rollouts)
    elif calls["take_over"]:
        continue_from = _take_over(config, calls, rollouts)
    else:
        continue_from = _continue(config, calls, score, workload)
    transport = calls["probe"] if _decoding(calls) == "continue_from" else []
    transport_call_s, transport_s = _line(
        [float(work.num_tokens) for work, _ in transport], [s for _, s in transport]
    )
    return Rates(
        roll_out=rollouts.decode,
        prompt_s=rollouts.decode.seq_s,
        score=score,
        continue_from=continue_from,
        continue_call_s=0.0,
        transport_call_s=transport_call_s,
        transport_s=transport_s,
        learn=_forward(
            calls["accumulate"], extra=size * prompt / config.learner.num_ranks
        ),
        step_s=_typical(calls["step"]),
        publish_s=_typical(calls["publish"]),
        update_s=_typical(calls["update"]),
        latency_s=0.0,
    )


def _continue(
    config: Config, calls: dict[str, list[Call]], score: Forward, workload: Workload
) -> Decode:
    """Return the cost of the teacher's windows; a dedicated engine first reads them."""
    what = _decoding(calls)
    if not calls[what]:
        return Decode(step_s=0.0)
    engine = config.probe_engine or config.teacher.engine
    slots = engine.max_num_seqs
    rows = list[list[float]]()
    seconds = list[float]()
    read_s = 0.0
    if what == "probe":
        response = statistics.mean(workload.quantiles)
        size = config.rollout.chunk_size
        read_s = score.seconds([round(response) + workload.prompt_tokens] * size)
    for work, spent_s in calls[what]:
        windows = max(1, round(work.num_tokens / workload.window_tokens))
        # Rounded up: windows beyond the slots of the engine wait for another round.
        steps = workload.window_tokens * -(-windows // slots)
        rows.append([steps, float(work.num_tokens)])
        # The reading is predicted, and may come out longer than the whole call.
        seconds.append(max(0.0, spent_s - read_s))
    step_s, seq_s = least_squares(rows, seconds)
    return Decode(step_s=step_s, seq_s=seq_s)


def _rewrite(
    config: Config,
    calls: dict[str, list[Call]],
    score: Forward,
    rollouts: FittedRollouts,
) -> Decode:
    """Return the cost of the teacher's decoding, from its rewrites (TRD)."""
    slots = (config.probe_engine or config.teacher.engine).max_num_seqs
    rows = list[list[float]]()
    seconds = list[float]()
    for work, spent_s in calls["rewrite"]:
        attempts = rollouts.by_chunk[work.step, work.chunk]
        rows.append(_decoded(work, attempts, slots))
        # The teacher first reads the prompts with the attempts in them.
        prompt = rollouts.prompt_tokens
        read_s = score.seconds([prompt + length for length in attempts])
        seconds.append(max(0.0, spent_s - read_s))
    step_s, seq_s = least_squares(rows, seconds)
    return Decode(step_s=step_s, seq_s=seq_s)


def _take_over(
    config: Config, calls: dict[str, list[Call]], rollouts: FittedRollouts
) -> Decode:
    """Return the cost of the teacher's decoding, from its takeovers.

    The prefixes are in its cache. Scoring goes first inside the engine: while it lasts
    no takeover goes on.
    """
    slots = config.teacher.engine.max_num_seqs
    rows = list[list[float]]()
    seconds = list[float]()
    for work, spent_s in calls["take_over"]:
        rows.append(_decoded(work, rollouts.by_chunk[work.step, work.chunk], slots))
        scoring_s = sum(
            max(
                0.0, min(work.ended_s, score.ended_s) - max(work.began_s, score.began_s)
            )
            for score, _ in calls["score"]
            if score.actor == work.actor
        )
        seconds.append(max(0.0, spent_s - scoring_s))
    step_s, seq_s = least_squares(rows, seconds)
    return Decode(step_s=step_s, seq_s=seq_s)


def _decoded(work: Work, attempts: Sequence[int], slots: int) -> list[float]:
    """Return the decode steps and tokens of a chunk that the teacher wrote.

    Only their sum is known; each is taken to be as long as its attempt, up to one
    factor.
    """
    factor = work.num_tokens / sum(attempts)
    lengths = [max(1, round(factor * length)) for length in attempts]
    contexts = [0] * len(lengths)
    steps = continuous_batching(Decode(step_s=1.0), lengths, contexts, slots=slots)
    return [sum(count for count, _ in steps), float(sum(lengths))]


def _forward(calls: Sequence[Call], *, extra: float) -> Forward:
    """Return the cost of forward passes.

    `extra` is the tokens of the prompts, which a call's receipt does not count.
    """
    call_s, token_s = _line(
        [work.num_tokens + extra for work, _ in calls],
        [seconds for _, seconds in calls],
    )
    return Forward(call_s=call_s, token_s=token_s)


def _line(counts: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Fit fixed and per-count seconds, neither negative."""
    if not counts:
        return 0.0, 0.0
    fixed, each = least_squares([[1.0, count] for count in counts], seconds)
    return fixed, each


def _typical(calls: Sequence[Call]) -> float:
    return statistics.median(seconds for _, seconds in calls) if calls else 0.0


def _with_latency(
    config: Config, rates: Rates, workload: Workload, *, cores: int, step_s: float
) -> Rates:
    """Return the latency at which the run's own setting takes `step_s`.

    It is 0 where the setting is slower already.
    """
    low = 0.0
    high = _MOST_LATENCY_S
    # 20 halvings of 0.1 s: the latency is known to a tenth of a microsecond.
    for _ in range(20):
        middle = (low + high) / 2
        tried = simulate(
            config, replace(rates, latency_s=middle), workload, cores=cores
        )
        low, high = (middle, high) if tried.step_s < step_s else (low, middle)
    return replace(rates, latency_s=low)
