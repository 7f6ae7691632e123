"""topd: parse, validate, and only then import the heavy half."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from topd_ray.errors import TopdError

app = typer.Typer(
    name="topd",
    help="Trajectory-aware on-policy distillation of language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
toy_app = typer.Typer(help="The small world of the demo.", no_args_is_help=True)
app.add_typer(toy_app, name="toy")

ConfigFile = Annotated[Path, typer.Argument(help="YAML file, e.g. configs/local-toy.yaml")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="section.key=value …", show_default=False)
]


@app.command()
def check(config: ConfigFile, overrides: Overrides = None) -> None:
    """Validate a config and print its plan; starts nothing, needs no GPU."""
    from topd_ray.config import load_config
    from topd_ray.driver.plan import make_plan
    from topd_ray.driver.plan_table import print_plan
    from topd_ray.driver.preflight import check_what_is_here

    loaded = load_config(config, overrides)
    notes = check_what_is_here(loaded)
    print_plan(loaded, make_plan(loaded), notes)


@app.command()
def train(config: ConfigFile, overrides: Overrides = None) -> None:
    """Train a student; leaves a run folder."""
    from topd_ray.config import load_config

    loaded = load_config(config, overrides)
    from topd_ray.driver import run

    run.train(loaded)


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(help="A run folder, e.g. runs/demo")],
) -> None:
    """Continue a run from its newest checkpoint."""
    from topd_ray.driver import run

    run.resume(folder)


@app.command("eval")
def evaluate(
    model: Annotated[Path, typer.Argument(help="A model folder or a run folder")],
    problems: Annotated[
        Path | None, typer.Option(help="Problems with an `answer`; by default the run's own")
    ] = None,
    num: Annotated[int, typer.Option(min=1, help="Ask the first so many")] = 500,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest response")] = 8000,
    backend: Annotated[str, typer.Option(help="vllm or hf")] = "vllm",
) -> None:
    """Greedy accuracy on held-out problems, with its 95 % interval."""
    from topd_ray.driver.evaluate import evaluate_folder

    evaluate_folder(
        model, problems=problems, num_problems=num, max_tokens=max_tokens, backend=backend
    )


@toy_app.command("build")
def toy_build(
    folder: Annotated[Path, typer.Argument(help="Where the world is written")],
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Make the toy world anew: problems, tokenizer, teacher, warm-started student."""
    import logging

    from topd_ray.toy import build_world

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    build_world(folder, seed=seed)


def main() -> None:
    """Console script: a TopdError becomes its message and its exit code, never a traceback."""
    try:
        app(standalone_mode=True)
    except TopdError as error:
        typer.echo(f"topd: {error}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
