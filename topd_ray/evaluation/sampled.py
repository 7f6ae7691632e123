"""Grade several sampled answers to each held-out problem."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from topd_ray.engines.protocols import GenerationEngine, GenerationRequest
from topd_ray.evaluation.answers import is_right
from topd_ray.evaluation.greedy import response_texts
from topd_ray.messages import Prompt
from topd_ray.seeds import derive_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledAccuracy:
    """Shares over problems, with the same number k of samples each.

    Example: of two problems with four samples, one is answered right once and the other
    never: `avg` is 1 / 8 and `pass_any` 1 / 2.
    """

    num_problems: int
    samples: int
    """k, the responses to each problem."""
    avg: float
    """avg@k: the share of right responses."""
    pass_any: float
    """pass@k: the share of problems with a right response."""


def sampled_accuracy(
    engine: GenerationEngine,
    problems: Sequence[Prompt],
    *,
    folder: Path,
    max_tokens: int,
    samples: int,
    seed: int,
) -> SampledAccuracy:
    """Return avg@k and pass@k of k `samples` a problem, drawn at temperature 1.

    Responses of at most `max_tokens` tokens are decoded with the tokenizer in `folder`
    and graded as greedy ones are. The same `seed` draws the same responses.
    """
    requests: list[GenerationRequest] = []
    problem_of: dict[str, Prompt] = {}
    for problem in problems:
        asked = _requests(problem, samples, max_tokens, seed)
        requests += asked
        problem_of |= dict.fromkeys((one.request_id for one in asked), problem)
    responses = list(engine.generate(requests))
    texts = response_texts(folder, responses)
    num_right = Counter[str]()
    for response, text in zip(responses, texts, strict=True):
        problem = problem_of[response.request_id]
        num_right[problem.prompt_id] += is_right(text, problem.answer)
    return SampledAccuracy(
        num_problems=len(problems),
        samples=samples,
        avg=num_right.total() / len(requests),
        pass_any=sum(count > 0 for count in num_right.values()) / len(problems),
    )


def _requests(
    problem: Prompt, samples: int, max_tokens: int, seed: int
) -> list[GenerationRequest]:
    return [
        GenerationRequest(
            request_id=f"{problem.prompt_id}/{sample}",
            prompt_ids=problem.token_ids_P,
            max_tokens=max_tokens,
            temperature=1.0,
            top_p=1.0,
            seed=derive_seed(seed, problem.prompt_id, sample, "evaluation"),
            num_top=0,
        )
        for sample in range(samples)
    ]


__all__ = ["SampledAccuracy", "sampled_accuracy"]
