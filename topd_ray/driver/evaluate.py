"""`topd eval`: a model or run folder, some problems, one engine in this process."""

from pathlib import Path

from rich.console import Console

from topd_ray.config import EngineConfig, EvaluationConfig
from topd_ray.driver.data import load_problems
from topd_ray.driver.folder import RunFolder
from topd_ray.errors import UserError
from topd_ray.evaluation import Accuracy, ask
from topd_ray.weights.folder import check_folder

_PROMPT_TOKENS = 4096  # a longer problem is refused; the engine's cache is sized by it


def evaluate_folder(
    path: Path, *, problems: Path | None, num_problems: int, max_tokens: int, backend: str
) -> Accuracy:
    """Print and return greedy accuracy. A run folder brings its own problems and limits."""
    from topd_ray.engines.open import open_generation

    model, prompt_tokens = path, _PROMPT_TOKENS
    engine = EngineConfig(dtype="float32", enforce_eager=True)
    if (path / "config.yaml").is_file():
        folder, config = RunFolder.existing(path)
        model, engine = folder.export, config.rollout.engine
        problems = problems or (Path(config.evaluation.path) if config.evaluation.path else None)
        max_tokens = min(max_tokens, config.rollout.max_response_tokens)
        prompt_tokens = config.prompts.max_tokens
    if problems is None:
        raise UserError(f"{path}: --problems is missing (a file of problems with an `answer`)")
    if backend not in ("vllm", "hf"):
        raise UserError(f"--backend {backend}: expected vllm or hf")
    check_folder(model, role="student")
    asked = load_problems(
        EvaluationConfig(path=str(problems), num_problems=num_problems),
        model,
        max_tokens=prompt_tokens,
    )
    opened = open_generation(
        model,
        engine.model_copy(update={"backend": backend, "max_model_len": None}),
        max_model_len=prompt_tokens + max_tokens,
    )
    try:
        accuracy = ask(opened, asked, folder=model, max_tokens=max_tokens)
    finally:
        opened.close()
    low, high = accuracy.interval
    Console().print(
        f"{path}: {accuracy.share:.1%} [{low:.1%}, {high:.1%}] of {accuracy.num_problems} problems"
        f", {accuracy.num_tokens / accuracy.num_problems:.0f} tokens an answer, "
        f"{accuracy.num_truncated} truncated",
        markup=False,
        highlight=False,
    )
    return accuracy
