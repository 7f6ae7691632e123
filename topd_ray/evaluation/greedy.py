"""Grade a model's greedy answers to held-out problems, on any generation engine."""

from collections.abc import Sequence
from pathlib import Path

from topd_ray.engines.protocols import Generation, GenerationEngine, GenerationRequest
from topd_ray.evaluation.accuracy import Accuracy
from topd_ray.evaluation.answers import is_right
from topd_ray.messages import Prompt


def greedy_accuracy(
    engine: GenerationEngine,
    problems: Sequence[Prompt],
    *,
    folder: Path,
    max_tokens: int,
) -> Accuracy:
    """Return the accuracy of the engine's greedy responses to the problems.

    Responses of at most `max_tokens` tokens are decoded with the tokenizer in `folder`.
    A response is right where its last \\boxed{...} equals the problem's answer.
    """
    responses = _greedy_responses(engine, problems, max_tokens)
    return _grade(problems, responses, response_texts(folder, responses))


def response_texts(folder: Path, responses: Sequence[Generation]) -> list[str]:
    """Return the responses as text, by the tokenizer in `folder`."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    texts: list[str] = tokenizer.batch_decode(
        [response.token_ids_N.tolist() for response in responses],
        skip_special_tokens=True,
    )
    return texts


def _greedy_responses(
    engine: GenerationEngine, problems: Sequence[Prompt], max_tokens: int
) -> list[Generation]:
    requests = [
        GenerationRequest(
            request_id=problem.prompt_id,
            prompt_ids=problem.token_ids_P,
            max_tokens=max_tokens,
            temperature=0.0,
            top_p=1.0,
            seed=0,  # greedy decoding draws nothing
            num_top=0,
        )
        for problem in problems
    ]
    # The engine yields responses as they finish; they are graded in file order.
    by_id = {response.request_id: response for response in engine.generate(requests)}
    return [by_id[problem.prompt_id] for problem in problems]


def _grade(
    problems: Sequence[Prompt], responses: Sequence[Generation], texts: Sequence[str]
) -> Accuracy:
    """Count the right, the truncated and all tokens."""
    right = [
        is_right(text, problem.answer)
        for problem, text in zip(problems, texts, strict=True)
    ]
    return Accuracy(
        num_problems=len(problems),
        num_correct=sum(right),
        num_truncated=sum(response.finish_reason == "length" for response in responses),
        num_tokens=sum(len(response.token_ids_N) for response in responses),
    )
