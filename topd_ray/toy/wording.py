"""Solution -> text: steps worked out in words, with surface forms drawn from a
speaker's mix.

Which connective, verb or link is drawn never bears on what follows; teacher and student
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
    """How often a speaker uses each surface form: three mixes of probabilities."""

    connectives: Mix
    """Opens a step: "so we take 2 - 5"."""
    verbs: Mix
    """States a value: "which gives 7"."""
    links: Mix
    """Opens the rewritten expression: "therefore we have 3 + 4 * 7"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSurface:
    """The surface forms of one step."""

    connective: str
    verb: str
    link: str
    """Of the last step: opens "therefore the answer is"."""


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
    """What the user asks."""
    return f"what is {' '.join(expression)} modulo 10 ?"


def draw_surface(rng: Random, wording: Wording, num_steps: int) -> Surface:
    """Fresh surface forms for a solution of so many steps."""
    return tuple(
        StepSurface(
            connective=_draw(rng, wording.connectives),
            verb=_draw(rng, wording.verbs),
            link=_draw(rng, wording.links),
        )
        for _ in range(num_steps)
    )


def worked_solution(solution: Solution, wording: Wording, rng: Random) -> str:
    """The whole response, one blank between tokens, ending in the boxed answer."""
    words, _ = spoken_words(solution, draw_surface(rng, wording, len(solution.steps)))
    return " ".join(words)


def spoken_words(
    solution: Solution, surface: Surface
) -> tuple[list[str], frozenset[int]]:
    """The response word by word, and the indices of the words that turn into a wrong
    fork.
    """
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
    """One surface form of a mix."""
    return rng.choices(tuple(mix), tuple(mix.values()))[0]
