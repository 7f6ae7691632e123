"""Write solutions in words, with surface forms drawn from a speaker's mix.

The drawn connective, verb or link never changes what follows. Teacher and student
differ strongly in how often they use each.
"""

from dataclasses import dataclass
from random import Random

from topd_ray.toy.problems import Expression, Solution

Mix = dict[str, float]

CONNECTIVES = ("so", "then", "hence", "thus", "next", "now")
VERBS = ("gives", "equals", "makes", "is")
LINKS = ("therefore", "consequently", "accordingly", "whence")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wording:
    """The probabilities of a speaker's surface forms: three mixes."""

    connectives: Mix
    """First word of a step: "so we take 2 - 5"."""
    verbs: Mix
    """Verb that states a value: "which gives 7"."""
    links: Mix
    """First word of what is left: "therefore we have 3 + 4 * 7"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSurface:
    """The surface forms of one step."""

    connective: str
    verb: str
    link: str
    """In the last step, the first word of "therefore the answer is"."""


Surface = tuple[StepSurface, ...]

TEACHER_WORDING = Wording(
    connectives={
        "so": 0.80,
        "then": 0.08,
        "next": 0.06,
        "now": 0.03,
        "thus": 0.02,
        "hence": 0.01,
    },
    verbs={"gives": 0.85, "is": 0.09, "makes": 0.04, "equals": 0.02},
    links={
        "therefore": 0.85,
        "consequently": 0.09,
        "accordingly": 0.04,
        "whence": 0.02,
    },
)
STUDENT_WORDING = Wording(
    connectives={
        "hence": 0.70,
        "thus": 0.12,
        "now": 0.08,
        "next": 0.04,
        "then": 0.03,
        "so": 0.03,
    },
    verbs={"equals": 0.70, "makes": 0.14, "is": 0.10, "gives": 0.06},
    links={
        "whence": 0.70,
        "accordingly": 0.14,
        "consequently": 0.10,
        "therefore": 0.06,
    },
)


def question(expression: Expression) -> str:
    """Return the question about an expression."""
    return f"what is {' '.join(expression)} modulo 10 ?"


def draw_surface(rng: Random, wording: Wording, num_steps: int) -> Surface:
    """Draw surface forms for a solution of `num_steps` steps."""
    return tuple(
        StepSurface(
            connective=_draw(rng, wording.connectives),
            verb=_draw(rng, wording.verbs),
            link=_draw(rng, wording.links),
        )
        for _ in range(num_steps)
    )


def worked_solution(solution: Solution, wording: Wording, rng: Random) -> str:
    """Return the whole response, blanks between tokens, the boxed answer last."""
    words, _ = spoken_words(solution, draw_surface(rng, wording, len(solution.steps)))
    return " ".join(words)


def spoken_words(
    solution: Solution, surface: Surface
) -> tuple[list[str], frozenset[int]]:
    """Return the words of the response, and the indices where a wrong fork begins."""
    words = ["we", "start", "from", *solution.expression, "."]
    wrong_turns = set()
    for step, forms in zip(solution.steps, surface, strict=True):
        words += [forms.connective, "we", "take"]
        differs = [took != due for took, due in zip(step.taken, step.due, strict=True)]
        if any(differs):
            wrong_turns.add(len(words) + differs.index(True))
        words += [*step.taken, ",", "which", forms.verb, str(step.value), "."]
        words += [forms.link]
        if len(step.leaves) > 1:
            words += ["we", "have", *step.leaves, "."]
    words += ["the", "answer", "is"]
    return [*words, "\\boxed{", str(solution.answer), "}"], frozenset(wrong_turns)


def _draw(rng: Random, mix: Mix) -> str:
    """Draw one surface form of a mix."""
    # The order of a mix decides the draw: another order is another world.
    return rng.choices(tuple(mix), tuple(mix.values()))[0]
