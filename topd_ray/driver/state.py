"""Where a run is between two steps: what a checkpoint holds beside the learner's
weights.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

from topd_ray.config import Config
from topd_ray.driver.checkpoint import Checkpoint
from topd_ray.driver.ledger import Ledger
from topd_ray.errors import UserError
from topd_ray.evaluation import Accuracy
from topd_ray.records.totals import Totals
from topd_ray.windows import RecentDistances


@dataclass(slots=True, kw_only=True)
class Place:
    """The driver's books."""

    recent: RecentDistances
    step: int = 0
    cursor: int = 0
    """Prompts taken."""
    ledger: Ledger = field(default_factory=Ledger)
    totals: Totals = field(default_factory=Totals)
    before: Accuracy | None = None
    """Accuracy before training."""

    @classmethod
    def of(cls, config: Config, checkpoint: Checkpoint | None) -> "Place":
        """Where a checkpoint says, or the start. Raises UserError where it says
        nonsense.
        """
        divergence = config.windows.divergence
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
    def _read(cls, state: dict[str, Any], divergence: Any) -> "Place":
        step, cursor = int(state["step"]), int(state["cursor"])
        if step < 0 or cursor < 0:
            raise ValueError(f"step {step}, cursor {cursor}")
        return cls(
            recent=RecentDistances(
                divergence, [float(d) for d in state["recent_distances"]]
            ),
            step=step,
            cursor=cursor,
            ledger=Ledger.restored(state["ledger"]),
            totals=Totals(**state["totals"]),
            before=Accuracy(**state["before"]) if state["before"] else None,
        )

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {
            "step": self.step,
            "cursor": self.cursor,
            "ledger": self.ledger.state(),
            "recent_distances": self.recent.values,
            "totals": self.totals.state(),
            "before": None if self.before is None else asdict(self.before),
        }
