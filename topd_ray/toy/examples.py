"""Expression and prompt form -> prompt and the response to learn, as token ids and
labels.
"""

from dataclasses import dataclass
from random import Random

from transformers import PreTrainedTokenizerFast

from topd_ray.toy.problems import Expression, Solution, solve, solve_carelessly
from topd_ray.toy.recipe import ModelRecipe, WorldRecipe
from topd_ray.toy.user_messages import Form, user_message
from topd_ray.toy.wording import (
    TEACHER_WORDING,
    Surface,
    draw_surface,
    question,
    spoken_words,
    worked_solution,
)

IGNORED = -100  # a label that cross_entropy skips


@dataclass(frozen=True, slots=True, kw_only=True)
class UserMessage:
    """A user message, and what went into it."""

    expression: Expression
    message: str
    attempt: Solution
    """Drawn for every form, whether or not the form shows it."""
    attempt_surface: Surface


def draw_user_message(
    expression: Expression, form: Form, recipe: WorldRecipe, rng: Random
) -> UserMessage:
    """A user message of this form, with a fresh reference solution and a fresh
    attempt.
    """
    reference = worked_solution(solve(expression), TEACHER_WORDING, rng)
    attempt = solve_carelessly(expression, rng, recipe.attempts.slips)
    like_teacher = rng.random() < recipe.teacher_words_share
    wording = TEACHER_WORDING if like_teacher else recipe.attempts.wording
    surface = draw_surface(rng, wording, len(attempt.steps))
    said = " ".join(spoken_words(attempt, surface)[0])
    message = user_message(
        form, question(expression), reference=reference, attempt=said
    )
    return UserMessage(
        expression=expression, message=message, attempt=attempt, attempt_surface=surface
    )


def labelled_example(
    expression: Expression,
    form: Form,
    speaker: ModelRecipe,
    recipe: WorldRecipe,
    tokenizer: PreTrainedTokenizerFast,
    rng: Random,
) -> tuple[list[int], list[int]]:
    """Token ids of prompt and response, and labels that leave out what is not to be
    learnt.

    A rewritten attempt keeps the attempt's surface forms step by step: every solution
    of an expression has as many steps as the expression has operators.
    """
    asked = draw_user_message(expression, form, recipe, rng)
    solution = solve(expression)
    surface = asked.attempt_surface
    if form == "plain":
        solution = solve_carelessly(expression, rng, speaker.manner.slips)
    if form in ("plain", "reference"):
        surface = draw_surface(rng, speaker.manner.wording, len(solution.steps))
    words, wrong_turns = spoken_words(solution, surface)
    response: list[int] = tokenizer.convert_tokens_to_ids(words)
    unlearnt = frozenset[int]() if speaker.learns_to_slip else wrong_turns
    labels = [IGNORED if at in unlearnt else token for at, token in enumerate(response)]
    prompt, end = prompt_ids(asked.message, tokenizer), tokenizer.eos_token_id
    return [*prompt, *response, end], [IGNORED] * len(prompt) + [*labels, end]


def prompt_ids(message: str, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """A user message in its chat template, up to where the assistant speaks."""
    ids: list[int] = tokenizer.apply_chat_template(
        [{"role": "user", "content": message}],
        add_generation_prompt=True,
        return_dict=False,
    )
    return ids
