"""Did the student get better? Held-out problems in training; contests by `topd eval`.

`ask` gives greedy answers during a run. `harness`, `model` and `problems` are what
`topd eval` adds to lm-evaluation-harness; they import it, so this package does not
import them.
"""

from topd_ray.evaluation.accuracy import Accuracy
from topd_ray.evaluation.ask import ask

__all__ = ["Accuracy", "ask"]
