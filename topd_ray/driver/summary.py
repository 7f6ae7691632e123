"""summary.json: the last file of a run."""

import math

from topd_ray.config import Config
from topd_ray.driver.training import Accuracies, RunContext

Summary = dict[str, object]
"""What summary.json holds: numbers, names, and null where there is no number."""


def summarize(run: RunContext, accuracies: Accuracies) -> Summary:
    """Return the summary of a finished run."""
    totals = run.state.totals
    before = accuracies.before
    after = accuracies.after
    return {
        **_names(run.config),
        "steps": run.state.step,
        # null, not NaN: strict JSON knows no NaN, and without problems there is none
        "accuracy_before": _finite(before.share),
        "accuracy_after": _finite(after.share),
        "accuracy_before_interval": [_finite(edge) for edge in before.interval],
        "accuracy_after_interval": [_finite(edge) for edge in after.interval],
        "num_eval": after.num_problems,
        "wall_s": round(run.wall_s, 3),
        "cpu_s": round(totals.cpu_s, 3),
        "peak_rss_gb": round(run.log.peak_memory_gb, 3),
        "peak_memory_gb": {
            role: round(gb, 3) for role, gb in run.log.role_peak_memory_gb.items()
        },
        "student_tokens": totals.student_tokens,
        "trained_tokens": totals.trained_tokens,
        "teacher_tokens": totals.teacher_tokens,
        "num_rollouts": run.state.ledger.num_dispatched,
        "num_dropped_prompts": len(run.inputs.dropped),
        "num_dropped_rollouts": dict(run.state.ledger.dropped),
        "num_candidates": totals.num_candidates,
        "num_divergent": totals.num_divergent,
        "num_taken_over": totals.num_taken_over,
        "num_skipped_steps": totals.skipped_steps,
        "num_failures": run.budget.num_failures,
        "stage_s": {
            name: round(seconds, 3) for name, seconds in totals.stage_s.items()
        },
    }


def _names(config: Config) -> Summary:
    return {
        "name": config.run.name,
        "method": config.run.method,
        "seed": config.run.seed,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
