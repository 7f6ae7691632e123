"""A study file: the run it starts from, where its results go, and one section a
study.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from topd_ray.config import Config, load_config
from topd_ray.config.base import Name, Section
from topd_ray.config.load import explain, read_yaml
from topd_ray.errors import UserError

StudyName = Literal["probing", "correction", "ablation", "case"]


class ProbingConfig(Section):
    """Section 2.1 of the paper, figures 2, 4 and 6: what token loss says of the near
    future.
    """

    num_prompts: PositiveInt = 200
    """Prompts, the first of the run's order; each gets `rollout.samples_per_prompt`
    rollouts.
    """
    resamples: PositiveInt = 2000
    """Of the bootstrap, which draws whole prompts: windows of one prompt are no
    strangers.
    """
    bins: PositiveInt = 10
    """Of the binned mean: equally many positions each."""
    epsilons: tuple[PositiveFloat, ...] = (0.005, 0.02, 0.05, 0.2)
    """Entropic blurs of the sensitivity table, beside exact transport."""
    windows: tuple[PositiveInt, ...] = (10, 25, 50)
    """K of the sensitivity table, in tokens; the run's `probe.window` is the longest
    possible.
    """
    temperatures: tuple[NonNegativeFloat, ...] = (0.0, 0.6, 1.0)
    """Of the teacher's decoding in the sensitivity table; each is one more probe of
    everything.
    """
    surface_tokens: tuple[Name, ...] = ()
    """Words that change the wording and not the reasoning; a position where the student
    says one of them is reported apart. Each must be one token of the student's
    tokenizer.
    """


class CorrectionConfig(Section):
    """Section 5.2 of the paper, figure 5: a few updates on one window, then look
    again.
    """

    num_prompts: PositiveInt = 200
    """Prompts whose rollouts are searched for a divergent prefix, at most one a
    rollout.
    """
    num_prefixes: PositiveInt = 100
    """Divergent prefixes corrected (paper: 1,000)."""
    updates: PositiveInt = 5
    """M: updates on the same prefix and window (paper: 5)."""
    lr: PositiveFloat = 1e-4
    """Constant learning rate of the updates; the paper gives none."""
    other_lrs: tuple[PositiveFloat, ...] = ()
    """The same study once more at each of these, for the table beside the figure."""
    temperature: NonNegativeFloat = 0.0
    """Of the regenerated continuation; 0 is greedy."""
    resamples: PositiveInt = 2000
    """Of the bootstrap behind the intervals."""


class CaseConfig(Section):
    """Figure 3 of the paper: one fork, token by token; updates and lr are
    `correction`'s.
    """

    num_prompts: PositiveInt = 50
    """Prompts among whose probes the fork is the one with the largest D_OT."""
    prompt: Name | None = None
    """Text of a user's turn to look for the fork in, instead."""
    positions: PositiveInt = 12
    """Tokens followed from the fork on."""
    top: PositiveInt = 5
    """Most likely tokens shown of each model."""


class VariantConfig(Section):
    """One row of the ablation."""

    config: Name | None = None
    """Config of its runs (a relative path starts at the study file's folder); by
    default `run`.
    """
    overrides: tuple[str, ...] = ()
    """`section.key=value` on top of it."""


class AblationConfig(Section):
    """Tables 1 and 2 of the paper: whole runs, a few seeds each, and their held-out
    accuracy.
    """

    seeds: Annotated[list[NonNegativeInt], Field(min_length=1)]
    """One run of every variant for each; variants are compared seed by seed."""
    students: Annotated[list[Name], Field(min_length=1)]
    """Folder of the warm start of each seed."""
    overrides: tuple[str, ...] = ()
    """`section.key=value` for every variant, after the study's own."""
    variants: Annotated[dict[str, VariantConfig], Field(min_length=1)]
    """Name of the row -> its runs."""
    baseline: Name = "opd"
    """The variant that the others are compared with."""
    processes: PositiveInt = 2
    """Runs at one time."""
    reference: dict[str, float] = Field(default_factory=dict)
    """The paper's accuracy of the same rows, in percent."""

    @model_validator(mode="after")
    def _the_baseline_is_a_variant(self) -> Self:
        if self.baseline not in self.variants:
            raise ValueError(
                f"ablation.baseline={self.baseline} is none of the variants "
                f"({', '.join(self.variants)}); add it or name another"
            )
        return self

    @model_validator(mode="after")
    def _every_seed_has_a_warm_start(self) -> Self:
        if len(self.seeds) != len(self.students):
            raise ValueError(
                f"ablation.seeds has {len(self.seeds)} entries, ablation.students "
                f"{len(self.students)}; name one warm start a seed"
            )
        return self


class StudyConfig(Section):
    """A study file, whole."""

    run: Name
    """Config of the run that is studied; a relative path starts at the study file's
    folder.
    """
    overrides: tuple[str, ...] = ()
    """`section.key=value` on top of it."""
    out: Name | None = None
    """Folder of the results; by default `runs/studies/<name of the study file>`."""
    seed: NonNegativeInt = 0
    """Of the bootstrap and of whatever else a study draws; the run has a seed of its
    own.
    """
    probing: ProbingConfig = ProbingConfig()
    correction: CorrectionConfig = CorrectionConfig()
    case: CaseConfig = CaseConfig()
    ablation: AblationConfig | None = None

    @property
    def folder(self) -> Path:
        """Where the results go."""
        assert self.out is not None, "load_study fills it in"
        return Path(self.out)

    def load_run(self, overrides: list[str] | None = None) -> Config:
        """The run config with the study's overrides, then `overrides`."""
        return load_config(Path(self.run), [*self.overrides, *(overrides or [])])


def load_study(path: Path, out: Path | None = None) -> StudyConfig:
    """Read and validate a study file and the run config it names; `out` wins over the
    file's.

    Paths in the result are absolute. Raises UserError.
    """
    values = read_yaml(path)
    try:
        study = StudyConfig.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{path}: {explain(error)}") from None
    folder = out or Path(study.out or f"runs/studies/{path.stem}")
    study = study.model_copy(
        update={
            "run": str((path.parent / study.run).resolve()),
            "out": str(folder.absolute()),
            "ablation": study.ablation and _resolved(study.ablation, path.parent),
        }
    )
    study.load_run()
    return study


def _resolved(ablation: AblationConfig, folder: Path) -> AblationConfig:
    """The same with absolute paths of the variants' configs."""
    variants = {
        name: variant.model_copy(
            update={
                "config": variant.config and str((folder / variant.config).resolve())
            }
        )
        for name, variant in ablation.variants.items()
    }
    return ablation.model_copy(update={"variants": variants})


__all__ = [
    "AblationConfig",
    "CaseConfig",
    "CorrectionConfig",
    "ProbingConfig",
    "StudyConfig",
    "StudyName",
    "load_study",
]
