"""The recipe of a world: every number that goes into it."""

from dataclasses import dataclass, field

from topd_ray.toy.drawing import ProblemShape
from topd_ray.toy.problems import Slips
from topd_ray.toy.user_messages import Form
from topd_ray.toy.wording import STUDENT_WORDING, TEACHER_WORDING, Wording


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How a model words its solutions, and how often they are wrong."""

    wording: Wording
    slips: Slips
    """How often the worked solutions take a wrong fork."""


TEACHER_MANNER = Manner(
    wording=TEACHER_WORDING,
    slips=Slips(brackets=0.15, precedence=0.15, misconception=0.3),
)
STUDENT_MANNER = Manner(
    wording=STUDENT_WORDING,
    slips=Slips(brackets=0.3, precedence=0.65, misconception=0.99),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What a model learns under one prompt form."""

    form: Form
    share: float
    """Share of the batches; a model's shares add up to one."""
    batch: int
    """Solutions in a batch; fewer where prompts are long, so steps take as long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecipe:
    """One Qwen3 model and its supervised training on solutions in its manner."""

    layers: int
    hidden: int
    heads: int
    """Attention heads of 32 dimensions; keys and values are not shared."""
    feed_forward: int
    tied_embeddings: bool
    manner: Manner
    """Manner of solutions to plain prompts; under other forms they are careful."""
    learns_to_slip: bool
    """Whether the word that begins a wrong fork is trained on. The words behind it
    always are.
    """
    lessons: tuple[Lesson, ...]
    steps: int
    muon_lr: float = 0.02
    """Peak learning rate of the matrices inside the layers."""
    adamw_lr: float = 3e-3
    """Peak learning rate of embeddings, output head and norms."""
    warmup_steps: int = 30
    """Steps of linear warm-up; then a cosine falls to a tenth of the peak."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldRecipe:
    """A whole world: its problems, its teacher, its warm-started students.

    The teacher learns how to go on after a wrong fork, so that it can judge a student's
    wrong path, but never to take one; it also corrects attempts in the words of the
    attempt. The student takes some forks mostly right, others mostly wrong and one kind
    wrong with confidence; with a reference solution in its prompt it is careful.
    """

    shape: ProblemShape = field(default_factory=ProblemShape)
    num_train: int = 4000
    num_dev: int = 500
    num_held_out: int = 1000
    num_students: int = 5
    """Students that are trained from one recipe: `student`, `student-1`, ..."""
    # A refining teacher meets the student's attempts, so it learns on such ones.
    attempts: Manner = STUDENT_MANNER
    """Manner of the attempts in prompts."""
    teacher_words_share: float = 0.25
    """Share of those attempts in the teacher's words, which students learn from it."""
    teacher: ModelRecipe = ModelRecipe(
        layers=4,
        hidden=128,
        heads=4,
        feed_forward=320,
        tied_embeddings=False,
        manner=TEACHER_MANNER,
        learns_to_slip=False,
        lessons=(
            Lesson(form="plain", share=0.6, batch=32),
            Lesson(form="refine", share=0.3, batch=20),
            Lesson(form="refine_reference", share=0.1, batch=12),
        ),
        steps=1200,
    )
    student: ModelRecipe = ModelRecipe(
        layers=3,
        hidden=96,
        heads=3,
        feed_forward=192,
        tied_embeddings=True,
        manner=STUDENT_MANNER,
        learns_to_slip=True,
        lessons=(
            Lesson(form="plain", share=0.6, batch=32),
            Lesson(form="reference", share=0.18, batch=20),
            Lesson(form="refine_reference", share=0.22, batch=16),
        ),
        steps=1050,
    )
