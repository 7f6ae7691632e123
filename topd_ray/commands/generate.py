"""`topd generate`: the teacher answers a config's prompts, for off-policy KD."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from topd_ray.config import Config
from topd_ray.contexts import load_tokenizer, student_chat
from topd_ray.engines.open import open_generation
from topd_ray.engines.protocols import Generation, GenerationEngine, GenerationRequest
from topd_ray.errors import UserError
from topd_ray.inputs.models import check_models
from topd_ray.inputs.paths import with_absolute_paths
from topd_ray.inputs.prompts import teacher_side
from topd_ray.messages import Prompt
from topd_ray.prompts import PromptRecord, read_records, tokenize_records
from topd_ray.seeds import derive_seed

_ROUNDS = 8
"""A chunk holds so many times `max_num_seqs` requests: enough that the engine is seldom
half empty, as it is while a chunk's last responses end.
"""
# A cut row of ours begins so; any other half line is the user's, and stays.
_ROW_START = b'{"prompt_id": '
_ROW_KEYS = frozenset({"prompt_id", "model", "response_ids"})
"""Keys by which a row of `topd generate` is told from a line of another file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerSampling:
    """How the teacher's answers are drawn (paper, B.1: 0.6, 0.95, 16384)."""

    temperature: float
    top_p: float
    max_tokens: int
    """Longest answer; `rollout.max_response_tokens` bounds it too."""


def generate(
    config: Config,
    out: Path,
    sampling: AnswerSampling,
    *,
    num: int | None = None,
    open_engine: Callable[..., GenerationEngine] = open_generation,
) -> Counter[str]:
    """Write a row to `out` (JSONL) as each response is finished; return the counts.

    The first `num` prompts (None: all) are answered, but for those that `out` holds
    already. A response depends on run.seed, prompt and sampling alone, so a run that
    was interrupted continues as if it had not been. Raises UserError before a model is
    loaded.
    """
    # Rows carry the name that the config gives: a path of this machine would make
    # another machine refuse to go on with them.
    model = config.teacher_model
    config = with_absolute_paths(config)
    data = Path(config.prompts.path)
    # Answers appended to the prompts that they answer would ruin the data.
    if out.resolve() == data.resolve():
        raise UserError(f"--out {out} is prompts.path itself; name another file")
    student, teacher, _ = check_models(config)
    read = read_records(data, columns=config.prompts.columns)
    records = {record.prompt_id: record for record in read[:num]}
    chat = student_chat(config, student)
    prompts, dropped = tokenize_records(
        records.values(),
        chat=chat,
        max_tokens=config.prompts.max_tokens,
        side=teacher_side(config, chat, teacher),
    )
    done = _recover(out, model=model)
    left = [prompt for prompt in prompts if prompt.prompt_id not in done]
    counts = Counter(
        {"rows before": len(prompts) - len(left), "prompts dropped": len(dropped)}
    )
    # A complete file needs no engine, which takes minutes to open.
    if left:
        limit = min(sampling.max_tokens, config.rollout.max_response_tokens)
        engine = open_engine(
            teacher,
            config.teacher.engine,
            max_model_len=config.teacher_prompt_tokens + limit,
            seed=config.run.seed,
        )
        requests = [
            _request(prompt, sampling, limit, run_seed=config.run.seed)
            for prompt in left
        ]
        try:
            answers = _in_chunks(
                engine, requests, _ROUNDS * config.teacher.engine.max_num_seqs
            )
            rows = _rows(answers, records, teacher, model=model)
            counts += _append(out, rows, total=len(left))
        finally:
            engine.close()
    _say(out, counts)
    return counts


def _say(out: Path, counts: Counter[str]) -> None:
    Console().print(
        f"{out}: {counts['rows']} rows written ({counts['tokens']} tokens,"
        f" {counts['truncated']} responses truncated), {counts['rows before']} were"
        f" there before, {counts['prompts dropped']} prompts dropped",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _request(
    prompt: Prompt, sampling: AnswerSampling, limit: int, *, run_seed: int
) -> GenerationRequest:
    own = prompt.teacher_ids_P
    return GenerationRequest(
        request_id=prompt.prompt_id,
        prompt_ids=prompt.token_ids_P if own is None else own,
        max_tokens=limit,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=derive_seed(run_seed, prompt.prompt_id, "generate"),
        num_top=0,
    )


def _in_chunks(
    engine: GenerationEngine, requests: Sequence[GenerationRequest], size: int
) -> Iterator[Generation]:
    for start in range(0, len(requests), size):
        yield from engine.generate(requests[start : start + size])


def _rows(
    answers: Iterable[Generation],
    records: Mapping[str, PromptRecord],
    teacher: Path,
    *,
    model: str,
) -> Iterator[dict[str, Any]]:
    """Yield rows that `read_records` reads back, with the `model` that answered."""
    tokenizer = load_tokenizer(teacher)
    for answer in answers:
        record = records[answer.request_id]
        token_ids: list[int] = answer.token_ids_N.tolist()
        yield {
            "prompt_id": record.prompt_id,
            "messages": [
                {"role": turn.role, "content": turn.text} for turn in record.turns
            ],
            "response": tokenizer.decode(token_ids, skip_special_tokens=True),
            "response_ids": token_ids,
            "finish_reason": answer.finish_reason,
            "answer": record.answer,
            "reference": record.reference,
            "model": model,
        }


def _append(out: Path, rows: Iterable[dict[str, Any]], *, total: int) -> Counter[str]:
    """Append the rows to `out` one by one, and return the counts.

    Each row is flushed before the next one is waited for, so an interruption loses the
    responses under way and no others.
    """
    counts: Counter[str] = Counter()
    try:
        with out.open("ab") as file, Progress(transient=True) as bar:
            task = bar.add_task(f"{out.name}", total=total)
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                file.flush()
                truncated = row["finish_reason"] == "length"
                counts.update(
                    rows=1, tokens=len(row["response_ids"]), truncated=int(truncated)
                )
                bar.advance(task)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written: {error.strerror}") from None
    return counts


def _recover(out: Path, *, model: str) -> set[str]:
    """Return the prompt ids of the rows in `out`; remove a half-written last line.

    Raises UserError where the file holds anything else, so that no file of the user is
    damaged, and where it cannot be written.
    """
    done: set[str] = set()
    size = 0
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a+b") as file:
            file.seek(0)
            for number, line in enumerate(file, start=1):
                if _is_cut(line):
                    break
                prompt_id = _prompt_id(line, where=f"{out}, line {number}", model=model)
                if not line.endswith(b"\n"):
                    break
                done.add(prompt_id)
                size += len(line)
        os.truncate(out, size)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written: {error.strerror}") from None
    return done


def _is_cut(line: bytes) -> bool:
    """Return whether the line is the beginning of a row and was cut after it."""
    if line[: len(_ROW_START)] != _ROW_START[: len(line)]:
        return False
    try:
        json.loads(line)
    except ValueError:
        return not line.endswith(b"\n")
    return False


def _prompt_id(line: bytes, *, where: str, model: str) -> str:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict) or not row.keys() >= _ROW_KEYS:
        raise UserError(f"{where}: no row of `topd generate`; name another --out")
    made_by = row["model"]
    if made_by != model:
        raise UserError(f"{where}: {made_by} wrote it, not {model}; name another --out")
    return str(row["prompt_id"])


__all__ = ["AnswerSampling", "generate"]
