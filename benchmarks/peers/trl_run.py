"""TRL's on-policy distillation, one step when asked; runs in a separate environment.

    python trl_run.py SPEC.json

A line on standard input lets one optimizer step go; each answers with a line of JSON:
tokens trained, wall and CPU seconds, loss. `benchmarks/bench_peers.py` writes the spec
and asks; nothing of topd_ray is imported.
"""

import json
import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback


class Meter(TrainerCallback):
    """Waits for leave before a step, which generates, scores and updates; then says
    what it took.

    Left out of the seconds: reading the prompts, and TRL's own log.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self._line: dict[str, Any] = {}
        self._since, self._busy = 0.0, 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Wait for a line; the end of input is the end of the run."""
        if not sys.stdin.readline():
            sys.exit(0)
        self.tokens = 0
        self._since, self._busy = time.perf_counter(), time.process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Weights are updated, gradients cleared."""
        self._line = {
            "tokens": self.tokens,
            "wall_s": time.perf_counter() - self._since,
            "cpu_s": time.process_time() - self._busy,
        }

    def on_log(self, *_: Any, logs: dict[str, Any], **__: Any) -> None:
        """Right after, with the loss."""
        if "loss" in logs:
            print(json.dumps(self._line | {"loss": float(logs["loss"])}), flush=True)


def main() -> None:
    """Train as the spec says."""
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(spec["threads"])
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    meter = Meter()
    with tempfile.TemporaryDirectory() as out:
        make = {"distillation": distillation, "gkd": gkd}[spec["trainer"]]
        make(spec, meter, out).train()


def common(spec: dict[str, Any], out: str) -> dict[str, Any]:
    """Float32 with activations kept, or bfloat16 with checkpointing (a pair that needs
    it); nothing saved, evaluated or reported.
    """
    return {
        "output_dir": out,
        "max_steps": 10**6,
        "per_device_train_batch_size": spec["micro_batch"],
        "gradient_accumulation_steps": spec["rollouts"] // spec["micro_batch"],
        "learning_rate": spec["lr"],
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1.0,
        "bf16": spec.get("bfloat16", False),
        "gradient_checkpointing": spec.get("bfloat16", False),
        "use_cpu": True,
        "temperature": 1.0,
        "beta": 1.0,  # both: KL(student || teacher) over the whole vocabulary
        "logging_steps": 1,
        "disable_tqdm": True,
        "report_to": "none",
        "save_strategy": "no",
        "eval_strategy": "no",
        "seed": spec["seed"],
    }


def distillation(spec: dict[str, Any], meter: Meter, out: str) -> Any:
    """`trl.DistillationTrainer`: one generation a step, tiled head, always
    on-policy.
    """
    from trl import DistillationConfig, DistillationTrainer

    class Counted(DistillationTrainer):
        def _generate_single_turn(self, *given: Any, **named: Any) -> Any:
            completions = super()._generate_single_turn(*given, **named)
            meter.tokens += sum(map(len, completions))
            return completions

    config = DistillationConfig(
        max_completion_length=spec["max_tokens"],
        shuffle_dataset=False,
        **common(spec, out),
    )
    student, teacher, tokenizer = load(spec)
    return Counted(
        model=student,
        teacher_model=teacher,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": turns} for turns in prompts(spec)]),
        processing_class=tokenizer,
        callbacks=[meter],
    )


def gkd(spec: dict[str, Any], meter: Meter, out: str) -> Any:
    """`trl.experimental.gkd.GKDTrainer` with lambda 1: a generation a micro-batch, full
    logits.
    """
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    class Counted(GKDTrainer):
        @staticmethod
        def generate_on_policy_outputs(*given: Any, **named: Any) -> Any:
            outputs = GKDTrainer.generate_on_policy_outputs(*given, **named)
            meter.tokens += int((outputs[2] != -100).sum())
            return outputs

    config = GKDConfig(
        max_new_tokens=spec["max_tokens"],
        max_length=spec["max_prompt_tokens"] + spec["max_tokens"],
        lmbda=1.0,
        seq_kd=False,
        **common(spec, out),
    )
    student, teacher, tokenizer = load(spec)
    answered = [
        [*turns, {"role": "assistant", "content": "."}] for turns in prompts(spec)
    ]
    return Counted(
        model=student,
        teacher_model=teacher,
        args=config,
        train_dataset=Dataset.from_list([{"messages": turns} for turns in answered]),
        processing_class=tokenizer,
        callbacks=[meter],
    )


def load(spec: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Student, teacher, and the tokenizer that generation pads on the left."""
    # The trained weights stay in float32 either way.
    few = torch.bfloat16 if spec.get("bfloat16") else torch.float32
    models = [
        AutoModelForCausalLM.from_pretrained(spec[role], dtype=dtype)
        for role, dtype in (("student", torch.float32), ("teacher", few))
    ]
    tokenizer = AutoTokenizer.from_pretrained(spec["student"], padding_side="left")
    return models[0], models[1], tokenizer


def prompts(spec: dict[str, Any]) -> list[list[dict[str, str]]]:
    """Turns of every rollout of a step: each prompt `samples` times. All steps have the
    same.
    """
    lines = Path(spec["prompts"]).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line)["messages"] for line in lines]
    assert len(rows) * spec["samples"] == spec["rollouts"], (
        "the file holds the prompts of one step"
    )
    return [turns for turns in rows for _ in range(spec["samples"])]


if __name__ == "__main__":
    main()
