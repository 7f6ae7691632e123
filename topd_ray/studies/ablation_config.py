"""Schema of a study file's section `ablation`: variants, seeds, comparisons."""

from typing import Annotated, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from topd_ray.config.base import Name, Section
from topd_ray.reports.ablation_results import Measure


class VariantConfig(Section):
    """One row of the ablation."""

    config: Name | None = None
    """Config of the variant's runs; by default the study's `run`.

    A relative path starts at the study file's folder.
    """
    overrides: tuple[str, ...] = ()
    """Overrides `section.key=value` of this variant's config."""


class ComparisonConfig(Section):
    """One pre-registered comparison of two variants, paired by seed."""

    name: Name
    """What the comparison asks, as a row of the report."""
    of: Name
    """The variant that is expected to be better."""
    against: Name
    """The variant that it is compared with."""
    by: Measure
    """`greedy`: greedy accuracy after training. `avg`, `pass`: avg@k and pass@k of
    samples. `equal_seconds`: greedy accuracy at the CPU seconds at which the sooner of
    the two runs ends.
    """


class AblationConfig(Section):
    """Tables 1 and 2 of the paper: held-out accuracy of whole runs at several seeds."""

    title: Name = "Tables 1 and 2: what each objective is worth"
    """Title of the report."""
    seeds: Annotated[list[NonNegativeInt], Field(min_length=1)]
    """Seeds: every variant has one run at each, and is compared seed by seed."""
    students: Annotated[list[Name], Field(min_length=1)]
    """Model folders of the warm starts, one per seed."""
    overrides: tuple[str, ...] = ()
    """Overrides `section.key=value` of every variant, after the study's own."""
    variants: Annotated[dict[str, VariantConfig], Field(min_length=1)]
    """The variants' settings by the name of their row."""
    baseline: Name = "opd"
    """The variant that the others are compared with."""
    samples: PositiveInt = 8
    """Responses sampled at temperature 1 for each of `sampled_problems`."""
    sampled_problems: PositiveInt | None = None
    """Problems, the first of `evaluation.path`, for avg@k and pass@k of every trained
    student; by default neither is measured.
    """
    comparisons: tuple[ComparisonConfig, ...] = ()
    """Comparisons that were fixed before the runs; the first is the primary one.

    p-values are corrected by Holm's method over the whole list.
    """
    fresh: tuple[NonNegativeInt, ...] = ()
    """Seeds whose warm starts played no part in the design of a variant.

    Every comparison is reported for them alone too.
    """
    processes: PositiveInt = 2
    """Runs that go on at the same time, in a process each."""
    reference: dict[str, float] = Field(default_factory=dict)
    """The paper's accuracy by the name of the row, in percent."""

    @model_validator(mode="after")
    def _the_baseline_is_a_variant(self) -> Self:
        if self.baseline not in self.variants:
            raise ValueError(
                f"ablation.baseline={self.baseline} is not a variant "
                f"({', '.join(self.variants)}); add it, or name one of these"
            )
        return self

    @model_validator(mode="after")
    def _every_seed_has_a_warm_start(self) -> Self:
        if len(self.seeds) != len(self.students):
            raise ValueError(
                f"ablation.seeds has {len(self.seeds)} entries, ablation.students "
                f"{len(self.students)}; name one warm start per seed"
            )
        return self

    @model_validator(mode="after")
    def _comparisons_can_be_made(self) -> Self:
        for comparison in self.comparisons:
            unknown = {comparison.of, comparison.against} - set(self.variants)
            if unknown:
                raise ValueError(
                    f"ablation.comparisons: {comparison.name!r} names no variant with"
                    f" {sorted(unknown)}; variants are {', '.join(self.variants)}"
                )
            if comparison.by in ("avg", "pass") and self.sampled_problems is None:
                raise ValueError(
                    f"ablation.comparisons: {comparison.name!r} is by"
                    f" {comparison.by}; set ablation.sampled_problems"
                )
        return self

    @model_validator(mode="after")
    def _fresh_starts_are_among_the_seeds(self) -> Self:
        unknown = set(self.fresh) - set(self.seeds)
        if unknown:
            raise ValueError(
                f"ablation.fresh={sorted(self.fresh)}: {sorted(unknown)} are not in"
                " ablation.seeds"
            )
        return self


__all__ = ["AblationConfig", "ComparisonConfig", "VariantConfig"]
