"""Schema of a study file: the run, the folder of results, one section per study."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

from topd_ray.config import Config, load_config
from topd_ray.config.base import Name, Section
from topd_ray.config.load import explain, read_yaml
from topd_ray.errors import UserError
from topd_ray.reports.correction_tables import WindowOf
from topd_ray.studies.ablation_config import AblationConfig


def _compiles(pattern: str) -> str:
    """Return a regular expression; raise ValueError where it is none."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
    return pattern


Pattern = Annotated[str, AfterValidator(_compiles)]
"""A regular expression."""
StudyName = Literal["probing", "correction", "ablation", "case", "verdicts"]


class ProbingConfig(Section):
    """Section 2.1 of the paper, figures 2, 4 and 6: token loss against D_OT."""

    num_prompts: PositiveInt = 200
    """The first prompts of the run's order.

    Each gets `rollout.samples_per_prompt` rollouts.
    """
    resamples: PositiveInt = 2000
    """Draws of the bootstrap.

    It draws whole prompts, because windows of one prompt depend on each other.
    """
    bins: PositiveInt = 10
    """Bins of the mean D_OT by token loss, with equally many positions each."""
    epsilons: tuple[PositiveFloat, ...] = (0.005, 0.02, 0.05, 0.2)
    """Entropic blurs of the sensitivity table, beside exact transport."""
    windows: tuple[PositiveInt, ...] = (10, 25, 50)
    """Window lengths K of the sensitivity table, in tokens.

    The run's `probe.window` is the longest possible.
    """
    temperatures: tuple[NonNegativeFloat, ...] = (0.0, 0.6, 1.0)
    """Temperatures of the teacher's decoding in the sensitivity table.

    Each one decodes and probes all windows once more.
    """
    kinds: dict[Name, Pattern] = Field(default_factory=dict)
    """Kinds of tokens that are reported apart: a regular expression by name.

    A position is of the first kind that matches the whole of the student's token
    without the spaces around it; of the kind `other` where none does.
    """
    num_readings: NonNegativeInt = 0
    """High-loss windows of each kind that are printed, with both continuations.

    They are drawn at random, by the study's seed.
    """


class CorrectionConfig(Section):
    """Section 5.2 of the paper, figure 5: a few updates on one divergent window."""

    num_prompts: PositiveInt = 200
    """Prompts whose rollouts are searched; a rollout gives at most one prefix."""
    num_prefixes: PositiveInt = 100
    """Divergent prefixes corrected (paper: 1,000)."""
    windows_of: Annotated[tuple[WindowOf, ...], Field(min_length=1)] = (
        "student",
        "teacher",
    )
    """Whose window is descended on, in turn: the student's own, as in the paper, or the
    teacher's. The first is the one that the figure shows.
    """
    updates: PositiveInt = 5
    """Number M of updates on the same prefix and window (paper: 5)."""
    lr: PositiveFloat = 1e-4
    """Constant learning rate of the updates; the paper gives none."""
    other_lrs: tuple[PositiveFloat, ...] = ()
    """Further learning rates, for the table by learning rate."""
    temperature: NonNegativeFloat = 0.0
    """Temperature of the regenerated continuation; 0 is greedy."""
    resamples: PositiveInt = 2000
    """Draws of the bootstrap behind the intervals."""


class CaseConfig(Section):
    """Figure 3 of the paper: one fork, token by token.

    Updates and learning rate are those of the section `correction`.
    """

    num_prompts: PositiveInt = 50
    """Prompts that are probed; the fork is the window with the largest D_OT."""
    prompt: Name | None = None
    """Text of a user's turn that is probed instead of the run's prompts."""
    positions: PositiveInt = 12
    """Tokens followed from the fork on."""
    top: PositiveInt = 5
    """How many of the most likely tokens of each model are shown."""


class VerdictsConfig(Section):
    """How well each score tells true forks from wording, where the truth is known."""

    truth: Literal["toy", "sums"]
    """What says which tokens are forks and which are wording. `toy`: the arithmetic of
    the toy world. `sums`: sums of integers that a response writes out.
    """
    overrides: tuple[str, ...] = ()
    """Overrides `section.key=value` of the run's config, after the study's own."""
    num_prompts: PositiveInt = 200
    """The first prompts of the run's order that are read."""
    prompt_ids: Pattern = ".*"
    """Those of them are answered whose whole id this regular expression matches."""
    windows: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (8, 16, 32, 50)
    """Window lengths K of D_OT, in tokens.

    The run's `probe.window` is the longest possible.
    """
    resamples: PositiveInt = 2000
    """Draws of the bootstrap, which draws whole prompts."""


class StudyConfig(Section):
    """All sections of a study file."""

    run: Name
    """Config of the run that is studied.

    A relative path starts at the study file's folder.
    """
    overrides: tuple[str, ...] = ()
    """Overrides `section.key=value` of the run's config."""
    out: Name | None = None
    """Folder of the results; by default `runs/studies/<name of the study file>`."""
    seed: NonNegativeInt = 0
    """Seed of the bootstrap and of the study's other draws.

    It is independent of `run.seed`.
    """
    probing: ProbingConfig = ProbingConfig()
    correction: CorrectionConfig = CorrectionConfig()
    case: CaseConfig = CaseConfig()
    verdicts: VerdictsConfig | None = None
    ablation: AblationConfig | None = None

    @property
    def folder(self) -> Path:
        """The folder of the results."""
        assert self.out is not None, "load_study fills it in"
        return Path(self.out)

    def load_run(self, overrides: list[str] | None = None) -> Config:
        """Return the run config with the study's overrides, then `overrides`."""
        return load_config(Path(self.run), [*self.overrides, *(overrides or [])])


def load_study(path: Path, out: Path | None = None) -> StudyConfig:
    """Read and validate a study file and the run config that it names.

    `out` replaces the file's own. Paths in the result are absolute. Raises UserError
    naming the file and the key.
    """
    values = read_yaml(path)
    try:
        study = StudyConfig.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{path}: {explain(error)}") from None
    # Inputs are relative to the study file, results to the working directory.
    folder = out or Path(study.out or f"runs/studies/{path.stem}")
    study = study.model_copy(
        update={
            "run": str((path.parent / study.run).resolve()),
            "out": str(folder.absolute()),
            "ablation": study.ablation and _resolved(study.ablation, path.parent),
        }
    )
    # A mistake in the run config or in an override shows here, not after an hour.
    study.load_run()
    return study


def _resolved(ablation: AblationConfig, folder: Path) -> AblationConfig:
    """Return the section with absolute paths of the variants' configs."""
    variants = {}
    for name, variant in ablation.variants.items():
        path = variant.config and str((folder / variant.config).resolve())
        variants[name] = variant.model_copy(update={"config": path})
    return ablation.model_copy(update={"variants": variants})


__all__ = [
    "CaseConfig",
    "CorrectionConfig",
    "ProbingConfig",
    "StudyConfig",
    "StudyName",
    "VerdictsConfig",
    "load_study",
]
