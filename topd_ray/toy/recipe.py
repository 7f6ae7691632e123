"""Every number that goes into a world."""

from dataclasses import dataclass, field

from topd_ray.toy.problems import ProblemShape, Slips
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
    slips: Slips
    """How often the worked solutions take a wrong fork."""
    learns_to_slip: bool
    """Whether the word that turns into a wrong fork is trained on; what follows it always is."""
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
    """A whole world: its problems, its teacher, its warm-started student.

    The teacher learns how to go on after a wrong fork, so that it can judge a student's wrong
    path, but never to take one. The student takes some forks mostly right and others mostly wrong.
    """

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
        slips=Slips(brackets=0.15, precedence=0.15),
        learns_to_slip=False,
        steps=900,
        batch=32,
    )
    student: ModelRecipe = ModelRecipe(
        layers=3,
        hidden=96,
        heads=3,
        feed_forward=256,
        tied_embeddings=True,
        wording=STUDENT_WORDING,
        slips=Slips(brackets=0.3, precedence=0.65),
        learns_to_slip=True,
        steps=600,
        batch=32,
    )
