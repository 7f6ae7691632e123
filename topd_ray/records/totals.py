"""Counts over a whole run, kept in every checkpoint and reported in summary.json."""

from dataclasses import asdict, dataclass, field
from typing import Any

from topd_ray.records.metrics import Metrics


@dataclass(slots=True)
class RunTotals:
    """Sums over steps. `stage_s`: busy seconds a stage, summed over its actors."""

    student_tokens: int = 0
    trained_tokens: int = 0
    teacher_tokens: int = 0
    """Tokens that the teacher decoded: windows, rewrites, takeovers."""
    num_taken_over: int = 0
    num_candidates: int = 0
    num_divergent: int = 0
    skipped_steps: int = 0
    wall_s: float = 0.0
    """Of earlier sessions, where the run was resumed."""
    cpu_s: float = 0.0
    """Of the driver's process in all steps, evaluations left out."""
    stage_s: dict[str, float] = field(default_factory=dict)

    def add_step(self, metrics: Metrics) -> None:
        """Count a finished step."""
        self.student_tokens += int(metrics["rollout/num_tokens"])
        self.trained_tokens += int(metrics["learner/num_tokens"])
        self.teacher_tokens += sum(
            int(metrics[f"{stage}/num_tokens"])
            for stage in ("probe", "rewrite", "takeover")
        )
        self.num_taken_over += int(metrics["takeover/num"])
        self.num_candidates += int(metrics["candidates/num"])
        self.num_divergent += int(metrics["windows/num_divergent"])
        self.skipped_steps += int(metrics["learner/skipped"])
        self.cpu_s += float(metrics["step/cpu_s"])
        for stage in (
            "rollout",
            "rewrite",
            "teacher",
            "probe",
            "takeover",
            "learner",
        ):
            # a stage that the method leaves out gets no row in the summary
            if seconds := float(metrics[f"{stage}/busy_s"]):
                self.add_seconds(stage, seconds)
        self.add_seconds("weights", float(metrics["weights/update_s"]))

    def add_seconds(self, stage: str, seconds: float) -> None:
        """Count time of something that is no step."""
        self.stage_s[stage] = self.stage_s.get(stage, 0.0) + seconds

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return asdict(self)
