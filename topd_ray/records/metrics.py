"""Numbers of a step, from its receipts, to metrics.jsonl and the trackers."""

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from topd_ray.config import Config
from topd_ray.messages import StepReport
from topd_ray.records.receipts import Receipt, StepReceipts
from topd_ray.records.run_folder import RunFolder, write_whole
from topd_ray.records.samples import StepSamples
from topd_ray.records.trackers import RunTracker, TrackerError, open_trackers

Metrics = dict[str, float | int]


def step_metrics(
    report: StepReport, receipts: StepReceipts, *, sync_s: float
) -> Metrics:
    """Return a step's numbers under flat names `stage/what_unit`.

    Busy seconds are summed over the actors of a stage. `sync_s`: seconds in which
    weights were published and loaded before the step.
    """
    return {
        "step": report.step,
        "loss": report.loss,
        "loss/opd": report.loss_opd,
        "loss/traj": report.loss_traj,
        **_learner_metrics(report, receipts),
        **_rollout_metrics(report, receipts),
        "rewrite/num_tokens": _tokens(receipts.rewrites),
        "rewrite/num_dropped": sum(len(r.dropped) for r in receipts.rewrites),
        "rewrite/busy_s": _busy_s(receipts.rewrites),
        **_teacher_metrics(receipts),
        **_probe_metrics(receipts),
        **_takeover_metrics(receipts),
        "weights/update_s": sync_s,
    }


def _learner_metrics(report: StepReport, receipts: StepReceipts) -> Metrics:
    return {
        "learner/rollout_kl": report.rollout_kl,
        "learner/grad_norm": report.grad_norm,
        "learner/lr": report.lr,
        "learner/num_tokens": report.num_tokens,
        "learner/num_window_positions": report.num_window_positions,
        "learner/skipped": int(report.skipped),
        "learner/busy_s": _busy_s(receipts.learned),
    }


def _rollout_metrics(report: StepReport, receipts: StepReceipts) -> Metrics:
    num_tokens = _tokens(receipts.rollouts)
    num_overshot = sum(receipt.num_overshot for receipt in receipts.rollouts)
    num_rollouts = sum(len(r.rollout_ids) for r in receipts.rollouts)
    num_truncated = sum(r.num_truncated for r in receipts.rollouts)
    oldest = min(receipt.policy_version for receipt in receipts.rollouts)
    return {
        "rollout/num": num_rollouts,
        "rollout/num_tokens": num_tokens + num_overshot,
        "rollout/num_overshot": num_overshot,
        "rollout/mean_tokens": num_tokens / num_rollouts,
        "rollout/entropy": sum(r.entropy_sum for r in receipts.rollouts) / num_tokens,
        "rollout/truncated_frac": num_truncated / num_rollouts,
        "rollout/busy_s": _busy_s(receipts.rollouts),
        # Step n trains the weights of version n - 1.
        "rollout/staleness": report.step - 1 - oldest,
    }


def _teacher_metrics(receipts: StepReceipts) -> Metrics:
    num_tokens = _tokens(receipts.scores)
    return {
        "teacher/num_tokens": num_tokens,
        "teacher/mean_token_loss": (
            sum(r.loss_sum for r in receipts.scores) / num_tokens
        ),
        "teacher/busy_s": _busy_s(receipts.scores) + _busy_s(receipts.reads),
    }


def _probe_metrics(receipts: StepReceipts) -> Metrics:
    num_candidates = sum(receipt.num_candidates for receipt in receipts.scores)
    num_divergent = sum(receipt.num_divergent for receipt in receipts.learned)
    # A window with a non-finite cost has nan, which would make the mean nan.
    probed = chain.from_iterable(receipt.distances for receipt in receipts.probes)
    distances = [distance for distance in probed if math.isfinite(distance)]
    return {
        "candidates/num": num_candidates,
        "probe/num_tokens": _tokens(receipts.continued),
        "probe/cached_frac": _share(
            sum(receipt.num_cached_tokens for receipt in receipts.continued),
            sum(receipt.num_prefix_tokens for receipt in receipts.continued),
        ),
        "probe/num_unconverged": sum(r.num_unconverged for r in receipts.probes),
        "probe/mean_d_ot": sum(distances) / len(distances) if distances else 0.0,
        "probe/busy_s": _busy_s(receipts.continued) + _busy_s(receipts.probes),
        "probe/transport_s": _busy_s(receipts.probes),
        "windows/num_divergent": num_divergent,
        "windows/divergent_frac": _share(num_divergent, num_candidates),
    }


def _takeover_metrics(receipts: StepReceipts) -> Metrics:
    takeovers = receipts.takeovers
    num = sum(receipt.num_taken_over for receipt in takeovers)
    num_rollouts = sum(len(receipt.rollout_ids) for receipt in receipts.rollouts)
    num_own = sum(receipt.num_own for receipt in takeovers)
    sums = [receipt.sums for receipt in receipts.learned]
    return {
        # nats a position, where each counts
        "takeover/reverse_kl": _share(
            sum(part.reverse_kl for part in sums),
            sum(part.num_reverse for part in sums),
        ),
        "takeover/forward_kl": _share(
            sum(part.forward_kl for part in sums),
            sum(part.num_forward for part in sums),
        ),
        "takeover/num": num,
        "takeover/frac": _share(num, num_rollouts),
        # the student's share of the tokens of a taken-over rollout, as it is trained
        "takeover/own_frac": _share(num_own, num_own + _tokens(takeovers)),
        "takeover/num_tokens": _tokens(takeovers),
        "takeover/num_dropped": sum(len(receipt.dropped) for receipt in takeovers),
        "takeover/right_before_frac": _share(
            sum(receipt.num_right_before for receipt in takeovers),
            sum(receipt.num_judged_before for receipt in takeovers),
        ),
        "takeover/right_frac": _share(
            sum(receipt.num_right for receipt in takeovers),
            sum(receipt.num_judged for receipt in takeovers),
        ),
        "takeover/cached_frac": _share(
            sum(receipt.num_cached_tokens for receipt in takeovers),
            sum(receipt.num_prefix_tokens for receipt in takeovers),
        ),
        "takeover/busy_s": _busy_s(takeovers),
    }


def _share(part: float, whole: int) -> float:
    return part / whole if whole else 0.0


def _busy_s(receipts: Iterable[Receipt]) -> float:
    return sum(receipt.span.busy_s for receipt in receipts)


def _tokens(receipts: Iterable[Receipt]) -> int:
    return sum(receipt.num_tokens for receipt in receipts)


class MetricsLog:
    """Open sinks of one run; a context manager, so that nothing written is lost on the
    way out.
    """

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        *,
        last_step: int,
        on_lost: Callable[[TrackerError], None] | None = None,
    ) -> None:
        """Open the sinks, and drop the steps after `last_step`.

        A session that died before their checkpoint has logged them. `on_lost` is called
        where a tracker fails; it is given nothing more in this session, since a run
        must not end for it. Raises TopdError where a tracker cannot be opened.
        """
        self._folder = folder
        self._on_lost = on_lost
        self._trackers = list(open_trackers(config, folder, last_step=last_step))
        # Events stay when the run goes back: that a step failed once is worth knowing.
        self._events = folder.events.open("a", encoding="utf-8")
        self._open(last_step)

    def log(self, metrics: Mapping[str, float | int]) -> None:
        """Write the numbers of a step; `step` is among them."""
        _write_line(self._metrics, dict(metrics))
        self._tell(lambda tracker: tracker.log(metrics))

    def show(self, samples: StepSamples) -> None:
        """Give rollouts and figures of a step to the trackers."""
        self._tell(lambda tracker: tracker.show(samples))

    @property
    def has_trackers(self) -> bool:
        """Whether any tracker is left."""
        return bool(self._trackers)

    def event(self, kind: str, **details: Any) -> None:
        """Write an event: a drop, a skip, a checkpoint."""
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        _write_line(self._events, {"at": at, "event": kind, **details})

    def go_back(self, last_step: int) -> None:
        """Forget the steps after `last_step`: they will be done again."""
        self._metrics.close()
        self._tell(lambda tracker: tracker.go_back(last_step))
        self._open(last_step)

    def _tell(self, call: Callable[[RunTracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                call(tracker)
            except TrackerError as error:
                self._trackers.remove(tracker)
                self.event("tracker_lost", tracker=tracker.name, error=str(error))
                if self._on_lost is not None:
                    self._on_lost(error)

    def _open(self, last_step: int) -> None:
        _forget_after(self._folder.metrics, last_step)
        self._metrics = self._folder.metrics.open("a", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._tell(lambda tracker: tracker.close(failed=error is not None))
        self._metrics.close()
        self._events.close()


def _forget_after(path: Path, last_step: int) -> None:
    """Drop the lines of steps that will be done again (and a half-written last one)."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.endswith("\n") or json.loads(line)["step"] > last_step:
            break
        kept.append(line)
    write_whole(path, "".join(kept))


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with None for each that is no finite number, for strict
    JSON.
    """
    return {
        key: None if isinstance(item, float) and not math.isfinite(item) else item
        for key, item in values.items()
    }


def _write_line(file: Any, value: dict[str, Any]) -> None:
    """Write a line of strict JSON."""
    file.write(json.dumps(finite(value), allow_nan=False) + "\n")
    file.flush()
    # A power cut must not lose a line of a step that a checkpoint holds.
    os.fsync(file.fileno())
