"""How many problems a model gets right when it decodes greedily."""

import re
from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from topd_ray.toy.problems import Expression, solve_value
from topd_ray.toy.training import prompt_ids

MAX_RESPONSE_TOKENS = 160
_TOGETHER = 250
_BOXED = re.compile(r"\\boxed\{\s*(\d)\s*\}")


def greedy_accuracy(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, expressions: Sequence[Expression]
) -> float:
    """Share of expressions whose boxed answer is right."""
    num_right = 0
    for start in range(0, len(expressions), _TOGETHER):
        asked = expressions[start : start + _TOGETHER]
        responses = _greedy_responses(model, tokenizer, asked)
        num_right += sum(
            boxed_answer(response) == solve_value(expression)
            for response, expression in zip(responses, asked, strict=True)
        )
    return num_right / len(expressions)


def boxed_answer(response: str) -> int | None:
    """The last boxed digit of a response, or None."""
    found = _BOXED.findall(response)
    return int(found[-1]) if found else None


def _greedy_responses(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, expressions: Sequence[Expression]
) -> list[str]:
    """Decoded responses without special tokens, in order."""
    prompts = [prompt_ids(expression, tokenizer) for expression in expressions]
    padded = tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
    with torch.inference_mode():
        ids = model.generate(**padded, do_sample=False, max_new_tokens=MAX_RESPONSE_TOKENS)
    responses: list[str] = tokenizer.batch_decode(
        ids[:, padded["input_ids"].shape[1] :], skip_special_tokens=True
    )
    return responses
