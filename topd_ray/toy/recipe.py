"""Every number that goes into a world."""

from dataclasses import dataclass, field

from topd_ray.toy.problems import ProblemShape
from topd_ray.toy.wording import STUDENT_WORDING, TEACHER_WORDING, Wording


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecipe:
    """One Qwen3 model and its supervised training on solutions of its own kind."""

    layers: int
    hidden: int
    heads: int
    """Of 32 dimensions each, without sharing of keys and values."""
    feed_forward: int
    tied_embeddings: bool
    wording: Wording
    slip_probability: float
    """Chance to take a wrong fork where there is one."""
    steps: int
    batch: int
    """Solutions a step."""
    muon_lr: float = 0.02
    """Peak for the matrices inside the layers."""
    adamw_lr: float = 3e-3
    """Peak for embeddings, output head and norms."""
    warmup_steps: int = 30
    """Linear; then a cosine to a tenth of the peak."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A whole world: its problems, its teacher, its warm-started student."""

    shape: ProblemShape = field(default_factory=ProblemShape)
    num_train: int = 4000
    num_held_out: int = 1000
    teacher: ModelRecipe = ModelRecipe(
        layers=4,
        hidden=128,
        heads=4,
        feed_forward=320,
        tied_embeddings=False,
        wording=TEACHER_WORDING,
        slip_probability=0.0,
        steps=700,
        batch=32,
    )
    student: ModelRecipe = ModelRecipe(
        layers=3,
        hidden=96,
        heads=3,
        feed_forward=256,
        tied_embeddings=True,
        wording=STUDENT_WORDING,
        slip_probability=0.5,
        steps=350,
        batch=32,
    )
