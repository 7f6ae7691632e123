"""The share of held-out problems answered right, with its confidence interval."""

import math
from dataclasses import dataclass

_Z = 1.959964  # two-sided 95 %


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Counts over problems; the counts of disjoint sets of problems add up.

    Example: 30 of 100 right is `share` 0.30 and `interval` (0.22, 0.40).
    """

    num_problems: int = 0
    num_correct: int = 0
    num_truncated: int = 0
    """Responses that reached the token limit."""
    num_tokens: int = 0

    def __add__(self, other: "Accuracy") -> "Accuracy":
        return Accuracy(
            num_problems=self.num_problems + other.num_problems,
            num_correct=self.num_correct + other.num_correct,
            num_truncated=self.num_truncated + other.num_truncated,
            num_tokens=self.num_tokens + other.num_tokens,
        )

    @property
    def share(self) -> float:
        """Return correct / problems; nan where there are no problems."""
        return self.num_correct / self.num_problems if self.num_problems else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Return the Wilson score interval of the share at 95 %."""
        n = self.num_problems
        if n == 0:
            return (math.nan, math.nan)
        # Wilson, because the normal interval has no width at 0 and at 1.
        centre = (self.share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
        spread = math.sqrt(self.share * (1 - self.share) / n + _Z**2 / (4 * n**2))
        half = _Z * spread / (1 + _Z**2 / n)
        return (centre - half, centre + half)
