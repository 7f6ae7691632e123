"""Problems -> Accuracy, through any generation engine."""

from collections.abc import Sequence
from pathlib import Path

from topd_ray.engines.protocols import Generation, GenerationEngine, GenerationRequest
from topd_ray.evaluation.accuracy import Accuracy
from topd_ray.evaluation.answers import extract_boxed, same_answer
from topd_ray.messages import Prompt


def greedy_accuracy(
    engine: GenerationEngine,
    problems: Sequence[Prompt],
    *,
    folder: Path,
    max_tokens: int,
) -> Accuracy:
    """Greedy responses, decoded with the tokenizer in `folder`, compared with each
    answer.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    answers = _answers(engine, problems, max_tokens)
    texts = tokenizer.batch_decode(
        [answer.token_ids_N.tolist() for answer in answers], skip_special_tokens=True
    )
    return _grade(problems, answers, texts)


def _answers(
    engine: GenerationEngine, problems: Sequence[Prompt], max_tokens: int
) -> list[Generation]:
    requests = [
        GenerationRequest(
            request_id=problem.prompt_id,
            prompt_ids=problem.token_ids_P,
            max_tokens=max_tokens,
            temperature=0.0,
            top_p=1.0,
            seed=0,
            num_top=0,
        )
        for problem in problems
    ]
    by_id = {answer.request_id: answer for answer in engine.generate(requests)}
    return [by_id[problem.prompt_id] for problem in problems]


def _grade(
    problems: Sequence[Prompt], answers: Sequence[Generation], texts: Sequence[str]
) -> Accuracy:
    """Compare each response's last \\boxed{...} with its problem's answer."""
    right = [
        problem.answer is not None and same_answer(extract_boxed(text), problem.answer)
        for problem, text in zip(problems, texts, strict=True)
    ]
    return Accuracy(
        num_problems=len(problems),
        num_correct=sum(right),
        num_truncated=sum(answer.finish_reason == "length" for answer in answers),
        num_tokens=sum(len(answer.token_ids_N) for answer in answers),
    )
