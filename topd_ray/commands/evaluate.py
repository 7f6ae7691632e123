"""`topd eval`: evaluate a model or a run on tasks of lm-evaluation-harness."""

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import date
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console

from topd_ray.config import Column, EngineConfig, PromptsConfig
from topd_ray.contexts import ChatTemplate
from topd_ray.errors import UserError
from topd_ray.evaluation.harness.report import (
    EvaluationReport,
    make_report,
    report_table,
)
from topd_ray.evaluation.harness.task_names import (
    CODE,
    PROMPT_FILES,
    TaskSampling,
    check_request,
)
from topd_ray.inputs.paths import with_absolute_paths
from topd_ray.models.architecture import check_tensors
from topd_ray.models.facts import read_facts
from topd_ray.models.folder import check_folder
from topd_ray.prompts import PromptRecord, read_records, read_rows
from topd_ray.records.run_folder import RunFolder, write_json, write_whole

TOY_PROBLEMS = Path(str(files("topd_ray"))) / "toy" / "world" / "heldout.jsonl"
PROMPT_COLUMNS = ("messages", "conversations", "prompt")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Subject:
    """The model to evaluate, and the defaults that come with it."""

    name: str
    model: Path
    engine: EngineConfig
    problems: Path | None = None
    num_problems: int | None = None
    max_tokens: int | None = None
    variables: Mapping[str, Any] | None = None
    """Of the chat template."""
    today: date | None = None
    columns: Mapping[Column, str | None] = field(default_factory=dict)
    """Of the run's own problems."""

    def chat(self) -> ChatTemplate:
        """Return the template of the prompts. Raises UserError where there is none."""
        return ChatTemplate(self.model, variables=self.variables, today=self.today)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """A task and its problems: the rows of a file, or None for those of the hub."""

    task: str
    name: str
    rows: list[dict[str, Any]] | None


def evaluate_folder(
    path: Path,
    *,
    tasks: Sequence[str] = (),
    problems: Path | None = None,
    data: Path | None = None,
    num_problems: int | None = None,
    sampling: TaskSampling,
    backend: str | None = None,
    variables: Mapping[str, Any] | None = None,
    out: Path | None = None,
    unsafe_code: bool = False,
) -> EvaluationReport:
    """Evaluate the model in `path`, print the report, and write it to `out`.

    `path` is a model folder or a run folder; a run's config supplies the problems and
    the limits that are not given. `variables` are those of the chat template, by
    default those that the model of a run was trained with. With `out`, every response
    is written beside it, to `<out>.samples.jsonl`. Raises UserError for a request that
    cannot be met.
    """
    # Before the evaluation, which may take hours, not when its report is written.
    if out is not None and not out.absolute().parent.is_dir():
        raise UserError(
            f"--out {out}: no such folder {out.absolute().parent}; make it first"
        )
    if backend not in (None, "vllm", "hf"):
        raise UserError(f"--backend {backend}: expected vllm or hf")
    subject = _subject(path, backend)
    if variables is not None:
        subject = replace(subject, variables=variables)
    if num_problems is None and not (tasks or problems or data):
        num_problems = subject.num_problems
    task_names, data = _tasks(subject, tasks, problems, data)
    check_request(task_names, sampling, unsafe_code=unsafe_code)
    own = data is not None and data == subject.problems
    columns = subject.columns if own else {}
    sources = [_source(task, data, columns) for task in task_names]
    report, samples = _run_tasks(subject, sources, sampling, num_problems)
    Console().print(report_table(report))
    if out is not None:
        write_json(out, report.to_json())
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in samples]
        write_whole(out.with_suffix(".samples.jsonl"), "".join(lines))
    return report


def parse_variables(text: str | None) -> dict[str, Any] | None:
    """Return the JSON object of --chat-template-kwargs. Raises UserError."""
    if text is None:
        return None
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise UserError(
            f"--chat-template-kwargs {text}: expected a JSON object such as"
            ' {"enable_thinking": true}'
        )
    return values


def _run_tasks(
    subject: _Subject,
    sources: Sequence[_Source],
    sampling: TaskSampling,
    num_problems: int | None,
) -> tuple[EvaluationReport, list[dict[str, Any]]]:
    """Run one task after another on one engine.

    All problems are loaded before the engine, so that a missing file costs no wait.
    """
    # The harness takes seconds to import; a bad request is refused before that.
    from topd_ray.engines.open import open_generation
    from topd_ray.evaluation.harness.model import EngineModel, LastingEngine
    from topd_ray.evaluation.harness.run import answer_task, load_task

    wanted = replace(sampling, max_tokens=sampling.max_tokens or subject.max_tokens)
    loaded = [load_task(source.task, wanted, source.rows) for source in sources]
    lasting = LastingEngine(
        lambda length: open_generation(
            subject.model, subject.engine, max_model_len=length
        ),
        context=read_facts(subject.model).max_position_embeddings,
    )
    with closing(lasting):
        answered = [
            answer_task(
                task,
                EngineModel(
                    lasting,
                    subject.model,
                    seed=sampling.seed,
                    # The harness's code tasks are texts to go on with, not questions in
                    # a chat.
                    chat=None if source.task in CODE else subject.chat(),
                    # A limit that the user gave is refused where it does not fit, never
                    # lowered.
                    may_shorten=sampling.max_tokens is None,
                ),
                name=source.task,
                source=source.name,
                seed=sampling.seed,
                num_problems=num_problems,
            )
            for task, source in zip(loaded, sources, strict=True)
        ]
    report = make_report(
        answered, model=subject.name, backend=subject.engine.backend, seed=sampling.seed
    )
    return report, list(chain.from_iterable(task.samples for task in answered))


def _subject(path: Path, backend: str | None) -> _Subject:
    if not (path / "config.yaml").is_file():
        check_folder(path, role="model")
        check_tensors(path, role="model")
        engine = _default_engine(path)
        trained = _run_of(path)
        return _Subject(
            name=str(path),
            model=path.absolute(),
            engine=engine.model_copy(update={"backend": backend or engine.backend}),
            variables=trained.chat_template_kwargs if trained else None,
            today=trained.today if trained else None,
        )
    folder, config = RunFolder.existing(path)
    config = with_absolute_paths(config)
    check_folder(folder.export, role=f"the model that run {path} trained")
    engine = config.rollout.engine
    held_out = config.evaluation
    return _Subject(
        name=str(path),
        model=folder.export,
        # These problems may be longer than the run's own, so its limit does not bind.
        engine=engine.model_copy(
            update={"backend": backend or engine.backend, "max_model_len": None}
        ),
        problems=Path(held_out.path) if held_out.path else None,
        num_problems=held_out.num_problems,
        max_tokens=held_out.max_response_tokens or config.rollout.max_response_tokens,
        variables=config.prompts.chat_template_kwargs,
        today=config.prompts.today,
        columns=held_out.columns,
    )


def _run_of(model: Path) -> PromptsConfig | None:
    """Return how the run that exported a model wrote its prompts; None: no such run."""
    run = RunFolder(model.absolute().parent)
    if model.absolute() != run.export or not run.config.is_file():
        return None
    return RunFolder.existing(run.path)[1].prompts


def _default_engine(folder: Path) -> EngineConfig:
    """Return the engine of a model without a run: its stored type, compiled on GPU."""
    import torch

    return EngineConfig(
        dtype="float32" if read_facts(folder).dtype == "float32" else "bfloat16",
        enforce_eager=not torch.cuda.is_available(),
    )


def _tasks(
    subject: _Subject, tasks: Sequence[str], problems: Path | None, data: Path | None
) -> tuple[tuple[str, ...], Path | None]:
    """Return the tasks, and the file of the one task's problems if there is one."""
    if problems is not None:
        if tasks or data is not None:
            raise UserError(
                f"--problems {problems}: stands for `--task problems --data"
                f" {problems}`; give the one or the other"
            )
        return ("problems",), problems
    if not tasks and data is None and subject.problems is not None:
        return ("problems",), subject.problems
    if not tasks:
        raise UserError(
            f"{subject.name}: no task is given; give --task (e.g. aime24), or"
            " --problems with a file of problems and answers"
        )
    if data is not None and len(tasks) > 1:
        raise UserError(
            f"--data {data}: holds the problems of one task, but {len(tasks)} are given"
            f" ({', '.join(tasks)}); evaluate them one by one"
        )
    return tuple(tasks), data


def _source(
    task: str, data: Path | None, columns: Mapping[Column, str | None]
) -> _Source:
    if task == "toy":
        data = data or TOY_PROBLEMS
    if data is not None:
        return _Source(task=task, name=str(data), rows=_local_rows(task, data, columns))
    if task == "problems":
        raise UserError(
            "--task problems: --data is missing (a prompt file with an `answer` a row)"
        )
    return _Source(task=task, name="hub", rows=None)


def _local_rows(
    task: str, path: Path, columns: Mapping[Column, str | None]
) -> list[dict[str, Any]]:
    """Return the problems of a file in our prompt format, or a benchmark's columns."""
    # Imported here, because it imports the harness.
    from topd_ray.evaluation.harness.problems import as_problem

    rows = list(read_rows(path))
    if task in CODE:
        return [dict(row) for _, _, row in rows if isinstance(row, dict)]
    if task in PROMPT_FILES or not rows or _is_prompt(rows[0][2]):
        return [
            _problem(record, path) for record in read_records(path, columns=columns)
        ]
    return [
        as_problem(
            row, default_id=f"{path.stem}-{number:06d}", where=f"{path}, {place}"
        )
        for place, number, row in rows
    ]


def _is_prompt(row: object) -> bool:
    return isinstance(row, dict) and any(
        row.get(key) is not None for key in PROMPT_COLUMNS
    )


def _problem(record: PromptRecord, path: Path) -> dict[str, Any]:
    if record.answer is None:
        raise UserError(
            f"{path}: problem {record.prompt_id!r} has no `answer` to compare with"
        )
    if not any(turn.role == "user" and turn.text.strip() for turn in record.turns):
        raise UserError(
            f"{path}: problem {record.prompt_id!r} has no text of a user in it"
        )
    return {
        "prompt_id": record.prompt_id,
        "messages": [
            {"role": turn.role, "content": turn.text} for turn in record.turns
        ],
        "answer": record.answer,
    }
