"""The command `topd`: parse, validate, and only then import torch and Ray."""

import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from topd_ray.errors import TopdError, UserError, printable

if TYPE_CHECKING:
    from topd_ray.config import Config

app = typer.Typer(
    name="topd",
    help="Trajectory-aware on-policy distillation of language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
toy_app = typer.Typer(help="The small world of the demo.", no_args_is_help=True)
app.add_typer(toy_app, name="toy")
data_app = typer.Typer(help="Prompt files from public data sets.", no_args_is_help=True)
app.add_typer(data_app, name="data")

ConfigFile = Annotated[
    Path, typer.Argument(help="YAML file, e.g. configs/local-toy.yaml")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="section.key=value …", show_default=False)
]
Quiet = Annotated[
    bool, typer.Option("--quiet", help="Print nothing on stdout; errors on stderr")
]
JsonLines = Annotated[
    bool,
    typer.Option("--json", help="Print a JSON line a step, the summary as the last"),
]


@app.command()
def check(config: ConfigFile, overrides: Overrides = None) -> None:
    """Validate a config and print its plan; start nothing, need no GPU."""
    from topd_ray.config import load_config

    loaded = load_config(config, overrides)
    from topd_ray.commands import check as command

    command.check(loaded)


@app.command()
def doctor(
    config: Annotated[
        Path | None,
        typer.Argument(help="Config to check for; by default the machine alone"),
    ] = None,
    overrides: Overrides = None,
    no_gpu: Annotated[
        bool, typer.Option("--no-gpu", help="Look at no GPU; while an image is built")
    ] = False,
) -> None:
    """Look at this machine: what would stop a run on it, and the way out.

    Takes up to half a minute. Exit code 2: something would stop a run.
    """
    from topd_ray.config import load_config

    loaded = None if config is None else load_config(config, overrides)
    from topd_ray.commands.doctor.examination import examine, print_findings

    if print_findings(examine(loaded, no_gpu=no_gpu)):
        raise typer.Exit(2)


@app.command()
def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    gpus: Annotated[
        str | None,
        typer.Option(help="Comma-separated, e.g. 4,8,16; by default as configured"),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            "--from", help="A traced run to take rates from; by default the roofline"
        ),
    ] = None,
    weak: Annotated[
        bool,
        typer.Option(help="Let the prompts of a step grow with the number of GPUs"),
    ] = False,
) -> None:
    """Predict step time, busy shares and the bottleneck.

    The loop and the pipeline of a run drive simulated actors in virtual time.
    """
    from topd_ray.config import load_config

    loaded = load_config(config, overrides)
    from topd_ray.commands import plan as command

    command.plan(loaded, gpus=gpus, run=run, weak=weak)


@app.command()
def train(
    config: ConfigFile,
    overrides: Overrides = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue the run if its folder exists already"),
    ] = False,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Serve its page meanwhile, and print the address"),
    ] = False,
    quiet: Quiet = False,
    json_lines: JsonLines = False,
) -> None:
    """Train a student and leave a run folder."""
    output = _output(quiet=quiet, json_lines=json_lines)
    from topd_ray.config import load_config

    loaded = load_config(config, overrides)
    from topd_ray.driver import session as run

    with _watched(loaded) if watch else nullcontext():
        run.train(loaded, resume_if_there=resume, output=output)


def _watched(config: "Config") -> AbstractContextManager[None]:
    from topd_ray.commands.watch import watching
    from topd_ray.records.run_folder import RunFolder

    return watching(RunFolder.of(config).path)


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(help="A run folder, e.g. runs/demo")],
    checkpoint: Annotated[
        str | None, typer.Option(help="E.g. step_20; by default the newest")
    ] = None,
    accept: Annotated[
        list[str] | None,
        typer.Option(
            help=(
                "A file that may be another than before, by its field, e.g."
                " prompts.path; may be repeated"
            )
        ),
    ] = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
    json_lines: JsonLines = False,
) -> None:
    """Continue a run from a checkpoint; `run.steps=N` extends a finished one."""
    output = _output(quiet=quiet, json_lines=json_lines)
    from topd_ray.driver import session as run

    run.resume(
        folder,
        checkpoint,
        overrides=overrides or [],
        accept=accept or [],
        output=output,
    )


def _output(*, quiet: bool, json_lines: bool) -> Literal["display", "json", "quiet"]:
    if quiet and json_lines:
        raise UserError("--quiet with --json: one prints nothing; drop either")
    if quiet:
        return "quiet"
    return "json" if json_lines else "display"


@app.command()
def runs(
    folder: Annotated[
        Path, typer.Argument(help="A folder that holds run folders")
    ] = Path("runs"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON instead of a table")
    ] = False,
) -> None:
    """List runs: method, step, accuracy, and whether each is going on."""
    from topd_ray.commands.runs import print_runs

    print_runs(folder, as_json=as_json)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run folder, e.g. runs/demo")],
    against: Annotated[
        Path | None, typer.Option(help="Another run folder to compare it with")
    ] = None,
) -> None:
    """Write report.html into a run folder: one page, which needs no network."""
    from topd_ray.commands.report import report as write

    typer.echo(write(run, against=against))


@app.command()
def watch(
    run: Annotated[Path, typer.Argument(help="A run folder, e.g. runs/demo")],
    host: Annotated[
        str, typer.Option(help="Address to bind; other than loopback, others see it")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="0 takes a free port")
    ] = 8765,
    until_stdin_ends: Annotated[
        bool, typer.Option("--until-stdin-ends", hidden=True)
    ] = False,
) -> None:
    """Serve the report while the run goes on, until Ctrl-C; it reads files alone."""
    from topd_ray.commands.watch import watch as serve

    serve(run, host=host, port=port, until_stdin_ends=until_stdin_ends)


@app.command()
def replay(
    dump: Annotated[Path, typer.Argument(help="A folder dumps/step_N of a run")],
) -> None:
    """Repeat a step whose update was skipped, rollout by rollout."""
    from topd_ray.commands import replay

    replay.replay(dump)


@app.command()
def generate(
    config: ConfigFile,
    out: Annotated[Path, typer.Option(help="JSONL file; rows in it are kept")],
    overrides: Overrides = None,
    num: Annotated[
        int | None,
        typer.Option(min=1, help="Number of prompts, from the first; by default all"),
    ] = None,
    max_tokens: Annotated[
        int,
        typer.Option(
            min=1, help="Longest response; rollout.max_response_tokens bounds it too"
        ),
    ] = 16384,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy")] = 0.6,
    top_p: Annotated[float, typer.Option(min=0.001, max=1)] = 0.95,
) -> None:
    """Let the teacher answer the prompts, as data for the method kd."""
    from topd_ray.config import load_config

    loaded = load_config(config, overrides)
    from topd_ray.commands import generate as command

    sampling = command.AnswerSampling(
        temperature=temperature, top_p=top_p, max_tokens=max_tokens
    )
    command.generate(loaded, out, sampling, num=num)


@app.command()
def convert(
    file: Annotated[Path, typer.Argument(help="GGUF file")],
    folder: Annotated[Path, typer.Argument(help="Where the model folder is written")],
    tie: Annotated[
        bool, typer.Option("--tie", help="One table for embedding and output head")
    ] = False,
) -> None:
    """Turn a GGUF file into a model folder, de-quantised to bfloat16."""
    from topd_ray.commands import convert as command

    command.convert(file, folder, tie=tie)
    typer.echo(f"{folder}: written")


@app.command("eval")
def evaluate(
    model: Annotated[Path, typer.Argument(help="A model folder or a run folder")],
    task: Annotated[
        list[str] | None,
        typer.Option(
            help=(
                "aime24, aime25, hmmt25_feb, toy, problems, humaneval_plus or"
                " mbpp_plus; may be "
                "repeated. By default a run's own held-out problems"
            )
        ),
    ] = None,
    problems: Annotated[
        Path | None,
        typer.Option(help="A prompt file with an `answer` a row, instead of --task"),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Local JSONL or Parquet file of the one --task")
    ] = None,
    num: Annotated[
        int | None,
        typer.Option(min=1, help="Number of problems, from the first; by default all"),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(min=1, help="Responses to a problem; contests 16, others 1"),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            min=0, help="0 is greedy; 0.6 for contests and for several samples, else 0"
        ),
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(min=0.001, max=1, help="0.95 unless greedy")
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Longest response; the run's own limit, or 8000 and what fits"
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Every sample's seed derives from it")
    ] = 0,
    backend: Annotated[
        str | None, typer.Option(help="vllm or hf; by default that of the run")
    ] = None,
    chat_template_kwargs: Annotated[
        str | None,
        typer.Option(
            help=(
                'Variables of the chat template as JSON, e.g. \'{"enable_thinking":'
                " true}'; by default those of the run"
            )
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="JSON file of the figures; the samples go beside it"),
    ] = None,
    confirm_run_unsafe_code: Annotated[
        bool,
        typer.Option(
            "--confirm-run-unsafe-code", help="Run programs that the model wrote"
        ),
    ] = False,
) -> None:
    """Measure Avg@k and Pass@k on contests or your own problems.

    Prompts and scores are those of lm-evaluation-harness.
    """
    from topd_ray.commands.evaluate import evaluate_folder, parse_variables
    from topd_ray.evaluation.harness.task_names import TaskSampling

    evaluate_folder(
        model,
        tasks=task or [],
        problems=problems,
        data=data,
        num_problems=num,
        sampling=TaskSampling(
            samples=samples,
            temperature=temperature,
            top_p=top_p,
            max_tokens=max_tokens,
            seed=seed,
        ),
        backend=backend,
        variables=parse_variables(chat_template_kwargs),
        out=out,
        unsafe_code=confirm_run_unsafe_code,
    )


@app.command()
def study(
    name: Annotated[
        Literal["probing", "correction", "ablation", "case", "verdicts"],
        typer.Argument(help="Analysis of the paper"),
    ],
    config: Annotated[
        Path, typer.Argument(help="Study file, e.g. configs/studies/toy.yaml")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the results; by default the file's `out`"),
    ] = None,
) -> None:
    """Run one of the papers' studies: Markdown, Parquet, JSON, figures."""
    import importlib
    import logging

    from topd_ray.studies.config import load_study

    loaded = load_study(config, out)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    importlib.import_module(f"topd_ray.studies.{name}").run(loaded)


ToyWorld = Annotated[
    Literal["shipped", "no-recovery", "small"],
    typer.Option(
        help=(
            "no-recovery: the teacher never learned to go on behind an error; small:"
            " longer problems and a smaller student"
        )
    ),
]


Jobs = Annotated[int, typer.Option(min=1, help="Models trained at a time, a core each")]


@toy_app.command("build")
def toy_build(
    folder: Annotated[Path, typer.Argument(help="Where the world is written")],
    world: ToyWorld = "shipped",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    students: Annotated[int, typer.Option(min=0, help="Warm-started students")] = 5,
    jobs: Jobs = 1,
) -> None:
    """Build a toy world: problems, tokenizer, teacher, warm-started students.

    Models of an earlier build in the folder are kept.
    """
    import logging
    from dataclasses import replace

    from topd_ray.toy import WORLDS, build_world

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    recipe = replace(WORLDS[world], num_students=students)
    build_world(folder, seed=seed, recipe=recipe, jobs=jobs)


@toy_app.command("extend")
def toy_extend(
    folder: Annotated[Path, typer.Argument(help="Where they are written")],
    students: Annotated[int, typer.Option(min=0, help="Students to add")],
    problems: Annotated[int, typer.Option(min=1, help="Held-out problems to add")],
    world: ToyWorld = "shipped",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    jobs: Jobs = 1,
) -> None:
    """Make more students and held-out problems of a toy world, in a folder."""
    import logging

    from topd_ray.toy import WORLDS, extend_world

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    extend_world(
        folder,
        num_students=students,
        num_held_out=problems,
        seed=seed,
        recipe=WORLDS[world],
        jobs=jobs,
    )


@data_app.command("openthoughts3")
def data_openthoughts3(
    out: Annotated[Path, typer.Argument(help="JSONL file that is written")],
    start: Annotated[
        int, typer.Option(min=0, help="Position of the first row in the math part")
    ] = 20_000,
    stop: Annotated[
        int, typer.Option(min=1, help="Position behind the last row")
    ] = 30_000,
    source: Annotated[
        str, typer.Option(help="Name on the hub, or a Parquet file or folder")
    ] = "open-thoughts/OpenThoughts3-1.2M",
) -> None:
    """Write problems of OpenThoughts3's math part as prompts, in its order."""
    from topd_ray.commands.data import write_openthoughts3

    typer.echo(write_openthoughts3(out, source, start=start, stop=stop))


def main() -> None:
    """Run the command line; print a TopdError as its message and exit with its code."""
    try:
        app(standalone_mode=True)
    except TopdError as error:
        typer.echo(f"topd: {printable(str(error))}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
