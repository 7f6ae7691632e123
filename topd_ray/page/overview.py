"""The overview: the run's numbers and curves as plain values for JSON."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from topd_ray.evaluation import Accuracy
from topd_ray.page.happenings import happenings
from topd_ray.records.open_run import Run

_RECENT_STEPS = 20
"""Steps whose median says how long the next ones take."""
_EDGE_STEPS = 5
"""Most steps at each end of the run whose median a tile shows."""

Line = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricCurve:
    """A chart of metrics over steps."""

    name: str
    title: str
    unit: str
    metrics: tuple[tuple[str, str], ...]
    """Label and name in metrics.jsonl of each line."""
    is_share: bool = False


CURVES = (
    MetricCurve(
        name="loss",
        title="Loss",
        unit="nats a token",
        metrics=(
            ("all", "loss"),
            ("on-policy", "loss/opd"),
            ("trajectory", "loss/traj"),
        ),
    ),
    MetricCurve(
        name="token_loss",
        title="Token loss of the rollouts",
        unit="nats a token",
        metrics=(("mean", "teacher/mean_token_loss"),),
    ),
    MetricCurve(
        name="divergent",
        title="Share of real divergences",
        unit="of the candidates",
        metrics=(("share", "windows/divergent_frac"),),
        is_share=True,
    ),
    MetricCurve(
        name="d_ot",
        title="Transport distance D_OT",
        unit="cost, 0 to 2",
        metrics=(("mean", "probe/mean_d_ot"), ("threshold", "threshold")),
    ),
    MetricCurve(
        name="entropy",
        title="Entropy of the student",
        unit="nats a token",
        metrics=(("mean", "rollout/entropy"),),
    ),
    MetricCurve(
        name="length",
        title="Length of a response",
        unit="tokens",
        metrics=(("mean", "rollout/mean_tokens"),),
    ),
    MetricCurve(
        name="rollout_kl",
        title="KL between engine and learner",
        unit="nats a token",
        metrics=(("estimate", "learner/rollout_kl"),),
    ),
    MetricCurve(
        name="grad_norm",
        title="Norm of the gradient",
        unit="before clipping",
        metrics=(("norm", "learner/grad_norm"),),
    ),
    MetricCurve(
        name="takeover",
        title="Rollouts taken over",
        unit="share",
        metrics=(("taken over", "takeover/frac"),),
        is_share=True,
    ),
    MetricCurve(
        name="truncated",
        title="Responses cut at the limit",
        unit="share",
        metrics=(("share", "rollout/truncated_frac"),),
        is_share=True,
    ),
    MetricCurve(
        name="step_s",
        title="Time of a step",
        unit="seconds",
        metrics=(("wall clock", "step/wall_s"),),
    ),
)
_TILES = (
    ("Loss", "loss", "nats a token", False),
    ("Token loss", "teacher/mean_token_loss", "nats a token", False),
    ("Entropy", "rollout/entropy", "nats a token", False),
    ("Response length", "rollout/mean_tokens", "tokens", False),
    ("D_OT of candidates", "probe/mean_d_ot", "cost, 0 to 2", False),
    ("Real divergences", "windows/divergent_frac", "of the candidates", True),
    ("Taken over", "takeover/frac", "of the rollouts", True),
)


def overview(run: Run, thresholds: Mapping[int, float]) -> dict[str, Any]:
    """Return everything but the distributions; `thresholds` is that of each step."""
    lines = [
        {**line, "threshold": thresholds.get(int(line["step"]))}
        for line in run.metric_lines
        if isinstance(line.get("step"), int)
    ]
    return {
        **progress(run),
        "seed": run.summary.get("seed") or (run.config and run.config.run.seed),
        "accuracy": _accuracies(run),
        "tiles": list(_tiles(lines)),
        "facts": list(_facts(run.summary, lines)),
        "steps": [line["step"] for line in lines],
        "curves": list(_curves(lines)),
        "seconds": _seconds(run.summary, lines),
        "memory": dict(run.summary.get("peak_memory_gb") or {}),
        "happenings": happenings(run.event_lines, run.summary),
        "config": _config_text(run),
    }


def progress(run: Run) -> dict[str, Any]:
    """Return what changes while a run goes on: state, step, and the seconds left."""
    lines = run.metric_lines
    step = int(lines[-1].get("step", 0)) if lines else 0
    config = run.config
    steps = None if config is None else config.run.steps
    recent = [
        float(line["step/wall_s"])
        for line in lines[-_RECENT_STEPS:]
        if line.get("step/wall_s") is not None
    ]
    left_s = median(recent) * (steps - step) if recent and steps else None
    return {
        "name": run.name,
        "state": run.state,
        "method": run.summary.get("method") or (config and config.run.method) or "",
        "step": step,
        "num_steps": steps,
        "left_s": left_s if run.state == "running" else None,
    }


def _accuracies(run: Run) -> list[dict[str, Any]]:
    """Return the measured accuracies in order, with their intervals."""
    summary = run.summary
    found = []
    if summary.get("accuracy_before") is not None:
        found.append(_of_summary(summary, "before", 0))
    for event in run.event_lines:
        kind = event.get("event")
        is_known = kind == "evaluated_before" and found
        if kind in ("evaluated", "evaluated_before") and not is_known:
            found += _of_event(event)
    if summary.get("accuracy_after") is not None:
        found.append(_of_summary(summary, "after", summary.get("steps")))
    return found


def _of_event(event: Line) -> list[dict[str, Any]]:
    accuracy = Accuracy(
        num_problems=int(event.get("num_problems") or 0),
        num_correct=int(event.get("num_correct") or 0),
    )
    if not accuracy.num_problems:
        return []
    is_before = event.get("event") == "evaluated_before"
    low, high = accuracy.interval
    return [
        {
            "label": "before training" if is_before else f"step {event.get('step')}",
            "step": 0 if is_before else event.get("step"),
            "share": accuracy.share,
            "low": low,
            "high": high,
            "count": accuracy.num_problems,
        }
    ]


def _of_summary(summary: Line, when: str, step: int | None) -> dict[str, Any]:
    low, high = summary.get(f"accuracy_{when}_interval") or (None, None)
    return {
        "label": f"{when} training",
        "step": step,
        "share": summary[f"accuracy_{when}"],
        "low": low,
        "high": high,
        "count": summary.get("num_eval"),
    }


def _tiles(lines: Sequence[Line]) -> Iterator[dict[str, Any]]:
    """Yield first and last values of the main metrics, medians of a few steps."""
    for label, metric, unit, is_share in _TILES:
        values = [line[metric] for line in lines if line.get(metric) is not None]
        if not any(values):
            continue
        # A run of a few steps has ends of one step.
        count = min(_EDGE_STEPS, max(1, len(values) // 3))
        yield {
            "label": label,
            "unit": unit,
            "is_share": is_share,
            "first": median(values[:count]),
            "last": median(values[-count:]),
        }


def _facts(summary: Line, lines: Sequence[Line]) -> Iterator[dict[str, str]]:
    """Yield totals as label and text."""

    def total(metric: str) -> int:
        return sum(int(line.get(metric) or 0) for line in lines)

    sampled = summary.get("student_tokens") or total("rollout/num_tokens")
    yield {"label": "Tokens sampled", "text": f"{sampled:,}"}
    trained = summary.get("trained_tokens") or total("learner/num_tokens")
    yield {"label": "Tokens trained", "text": f"{trained:,}"}
    decoded = summary.get("teacher_tokens") or sum(
        total(f"{stage}/num_tokens") for stage in ("probe", "rewrite", "takeover")
    )
    if decoded:
        yield {"label": "Decoded by the teacher", "text": f"{decoded:,}"}
    rollouts = summary.get("num_rollouts") or total("rollout/num")
    yield {"label": "Rollouts", "text": f"{rollouts:,}"}
    candidates = summary.get("num_candidates") or total("candidates/num")
    divergent = summary.get("num_divergent") or total("windows/num_divergent")
    if candidates:
        yield {
            "label": "Real divergences",
            "text": f"{divergent:,} of {candidates:,} ({divergent / candidates:.0%})",
        }
    seconds = summary.get("wall_s") or sum(
        float(line.get("step/wall_s") or 0) for line in lines
    )
    yield {"label": "Wall clock", "text": duration(seconds)}
    if summary.get("peak_rss_gb"):
        yield {"label": "Peak memory", "text": f"{summary['peak_rss_gb']:.1f} GB"}


def duration(seconds: float) -> str:
    """Return seconds as a person says them: 42 s, 3 min 5 s, 2 h 4 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min"


def _curves(lines: Sequence[Line]) -> Iterator[dict[str, Any]]:
    """Yield the charts that have anything to show."""
    for curve in CURVES:
        series: list[dict[str, Any]] = []
        for label, metric in curve.metrics:
            values = [_finite(line.get(metric)) for line in lines]
            # A part that is the whole says nothing.
            if any(values) and not (series and series[0]["values"] == values):
                series.append({"label": label, "values": values})
        if series:
            yield {
                "name": curve.name,
                "title": curve.title,
                "unit": curve.unit,
                "is_share": curve.is_share,
                "series": series,
            }


def _seconds(summary: Line, lines: Sequence[Line]) -> dict[str, float]:
    """Return busy seconds a stage; of a run that goes on, those of its steps."""
    if summary.get("stage_s"):
        return {str(name): float(s) for name, s in summary["stage_s"].items()}
    stages = ("rollout", "rewrite", "teacher", "probe", "takeover", "learner")
    seconds = {
        stage: sum(float(line.get(f"{stage}/busy_s") or 0) for line in lines)
        for stage in stages
    }
    return {stage: spent for stage, spent in seconds.items() if spent}


def _config_text(run: Run) -> str:
    try:
        return run.folder.config.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _finite(value: Any) -> float | None:
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


__all__ = ["CURVES", "MetricCurve", "duration", "overview", "progress"]
