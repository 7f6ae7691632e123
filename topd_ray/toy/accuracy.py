"""Measure how many problems a model solves when it decodes greedily."""

import re
from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from topd_ray.toy.examples import UserMessage, prompt_ids
from topd_ray.toy.problems import solve_value

MAX_RESPONSE_TOKENS = 160
_BATCH = 250
# Decoding puts blanks between tokens, so the digit stands apart from its braces.
_BOXED = re.compile(r"\\boxed\{\s*(\d)\s*\}")


def solved_greedily(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    messages: Sequence[UserMessage],
) -> list[bool]:
    """Return whether the boxed answer to each user message is right, in order."""
    solved: list[bool] = []
    for start in range(0, len(messages), _BATCH):
        batch = messages[start : start + _BATCH]
        responses = _greedy_responses(
            model, tokenizer, [message.text for message in batch]
        )
        solved += [
            boxed_answer(response) == solve_value(message.expression)
            for response, message in zip(responses, batch, strict=True)
        ]
    return solved


def boxed_answer(response: str) -> int | None:
    """Return the last boxed digit of a response, or None."""
    digits = _BOXED.findall(response)
    return int(digits[-1]) if digits else None


def _greedy_responses(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    user_messages: Sequence[str],
) -> list[str]:
    """Return the decoded responses without special tokens, in order."""
    prompts = [prompt_ids(message, tokenizer) for message in user_messages]
    padded = tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
    with torch.inference_mode():
        ids = model.generate(
            **padded, do_sample=False, max_new_tokens=MAX_RESPONSE_TOKENS
        )
    responses: list[str] = tokenizer.batch_decode(
        ids[:, padded["input_ids"].shape[1] :], skip_special_tokens=True
    )
    return responses
