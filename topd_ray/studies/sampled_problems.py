"""avg@k and pass@k of the student that a finished run has exported."""

import json
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from topd_ray.evaluation import SampledAccuracy, sampled_accuracy
from topd_ray.inputs.prompts import load_problems
from topd_ray.records.run_folder import RunFolder, write_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How many problems are sampled, and how often each."""

    num_problems: int
    """The first of `evaluation.path`."""
    samples: int
    """Responses to each problem."""

    def file(self, run: Path) -> Path:
        """Return the file in a run folder that holds the result."""
        return run / f"sampled-{self.num_problems}x{self.samples}.json"

    def read(self, run: Path) -> SampledAccuracy:
        """Return the result of a run folder."""
        return SampledAccuracy(**json.loads(self.file(run).read_text(encoding="utf-8")))

    def measure(self, run: Path) -> None:
        """Sample the exported student of a run folder and write the result."""
        # Imported here: it loads torch.
        from topd_ray.engines.open import open_generation

        folder, config = RunFolder.existing(run)
        held_out = config.evaluation.model_copy(
            update={"num_problems": self.num_problems}
        )
        problems = load_problems(
            config.model_copy(update={"evaluation": held_out}), folder.export
        )
        engine = open_generation(
            folder.export,
            config.rollout.engine,
            max_model_len=config.student_context_tokens,
        )
        with closing(engine):
            accuracy = sampled_accuracy(
                engine,
                problems,
                folder=folder.export,
                max_tokens=(
                    held_out.max_response_tokens or config.rollout.max_response_tokens
                ),
                samples=self.samples,
                seed=config.run.seed,
            )
        write_json(self.file(run), asdict(accuracy))


__all__ = ["Sampling"]
