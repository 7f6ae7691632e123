"""Make training examples: a prompt under a form and the response to learn."""

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
    """A user message, and what it was made from."""

    expression: Expression
    text: str
    attempt: Solution
    """A solution that may be wrong; drawn even where the form does not show it."""
    attempt_surface: Surface


def draw_user_message(
    expression: Expression, form: Form, recipe: WorldRecipe, rng: Random
) -> UserMessage:
    """Draw a user message of this form, with a fresh reference and a fresh attempt."""
    reference = worked_solution(solve(expression), TEACHER_WORDING, rng)
    attempt = solve_carelessly(expression, rng, recipe.attempts.slips)
    like_teacher = rng.random() < recipe.teacher_words_share
    wording = TEACHER_WORDING if like_teacher else recipe.attempts.wording
    surface = draw_surface(rng, wording, len(attempt.steps))
    said = " ".join(spoken_words(attempt, surface)[0])
    text = user_message(form, question(expression), reference=reference, attempt=said)
    return UserMessage(
        expression=expression, text=text, attempt=attempt, attempt_surface=surface
    )


def labelled_example(
    expression: Expression,
    form: Form,
    speaker: ModelRecipe,
    recipe: WorldRecipe,
    tokenizer: PreTrainedTokenizerFast,
    rng: Random,
) -> tuple[list[int], list[int]]:
    """Return token ids of prompt and response, and the labels to learn from.

    Labels are IGNORED for the prompt, and for wrong forks that `speaker` is not to
    learn. A rewritten attempt keeps the attempt's surface forms step by step, which
    works because every solution has one step for each operator.
    """
    message = draw_user_message(expression, form, recipe, rng)
    solution = solve(expression)
    surface = message.attempt_surface
    if form == "plain":
        solution = solve_carelessly(expression, rng, speaker.manner.slips)
    if form in ("plain", "reference"):
        surface = draw_surface(rng, speaker.manner.wording, len(solution.steps))
    words, wrong_turns = spoken_words(solution, surface)
    response: list[int] = tokenizer.convert_tokens_to_ids(words)
    unlearnt = frozenset[int]() if speaker.learns_to_slip else wrong_turns
    labels = [IGNORED if at in unlearnt else token for at, token in enumerate(response)]
    prompt = prompt_ids(message.text, tokenizer)
    end = tokenizer.eos_token_id
    return [*prompt, *response, end], [IGNORED] * len(prompt) + [*labels, end]


def prompt_ids(message: str, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Return a user message in its chat template, up to the assistant's turn."""
    ids: list[int] = tokenizer.apply_chat_template(
        [{"role": "user", "content": message}],
        add_generation_prompt=True,
        return_dict=False,
    )
    return ids
