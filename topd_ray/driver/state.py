"""Where a run is between two steps: what a checkpoint holds beside the learner's
state.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from topd_ray.config import Config, DivergenceConfig
from topd_ray.driver.checkpoint import Checkpoint
from topd_ray.driver.ledger import Ledger
from topd_ray.errors import UserError
from topd_ray.evaluation import Accuracy
from topd_ray.records.totals import RunTotals
from topd_ray.windows import RecentDistances


@dataclass(slots=True, kw_only=True)
class RunState:
    """The driver's own state of a run."""

    recent: RecentDistances
    """Distances, or surprises, that set the threshold of the verdict (D7)."""
    step: int = 0
    """Optimizer steps done."""
    cursor: int = 0
    """Prompts taken by those steps."""
    teacher_version: int = 0
    """Policy version that the teacher holds (`teacher.follow_every`); 0: the
    start's.
    """
    ledger: Ledger = field(default_factory=Ledger)
    totals: RunTotals = field(default_factory=RunTotals)
    before: Accuracy | None = None
    """Accuracy before training; None until it is known."""

    @classmethod
    def of(cls, config: Config, checkpoint: Checkpoint | None) -> "RunState":
        """Return the state in a checkpoint, or that of a new run.

        Raises UserError where the checkpoint holds no state of this version.
        """
        divergence = config.threshold_rule
        if checkpoint is None:
            return cls(recent=RecentDistances(divergence, ()))
        try:
            return cls._read(checkpoint.driver, divergence)
        except (
            KeyError,
            TypeError,
            ValueError,
            AttributeError,
            OverflowError,
        ) as error:
            raise UserError(
                f"{checkpoint.path}: driver.json is not what a run of this version"
                f" writes ({type(error).__name__}: {error}); resume from another one"
                " with --checkpoint"
            ) from None

    @classmethod
    def _read(
        cls, state: Mapping[str, Any], divergence: DivergenceConfig
    ) -> "RunState":
        step = int(state["step"])
        cursor = int(state["cursor"])
        teacher_version = int(state["teacher_version"])
        if step < 0 or cursor < 0 or not 0 <= teacher_version <= step:
            raise ValueError(
                f"step {step}, cursor {cursor}, teacher_version {teacher_version}"
            )
        distances = [float(d) for d in state["recent_distances"]]
        return cls(
            recent=RecentDistances(divergence, distances),
            step=step,
            cursor=cursor,
            teacher_version=teacher_version,
            # plain JSON came back: every value is converted, so that a wrong one raises
            ledger=Ledger.restored(state["ledger"]),
            totals=RunTotals(**state["totals"]),
            before=Accuracy(**state["before"]) if state["before"] else None,
        )

    def plain(self) -> dict[str, object]:
        """Return plain values for a checkpoint. Raises TopdError inside a step."""
        return {
            "step": self.step,
            "cursor": self.cursor,
            "teacher_version": self.teacher_version,
            "ledger": dict(self.ledger.state()),
            "recent_distances": self.recent.values,
            "totals": self.totals.state(),
            "before": None if self.before is None else asdict(self.before),
        }
