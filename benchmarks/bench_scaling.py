"""A prediction, not a measurement: the paper's models on 4 to 256 GPUs.

.venv/bin/python benchmarks/bench_scaling.py
"""

from pathlib import Path
from typing import Any

from measure import Claim, save

from topd_ray.commands.plan import scaled
from topd_ray.config import load_config
from topd_ray.simulate.placement import Placed
from topd_ray.simulate.roofline import Hardware, assumed_workload, roofline_rates

PAPER = Path(__file__).parents[1] / "configs" / "qwen3-30b-a3b-to-4b-4xh100.yaml"
WORDS = (
    "128 rollouts are decoded at once by a dozen engines, and their step then lasts as"
    " long as its longest rollout: GPUs beyond those pay with larger batches (the last"
    " rows) or not at all."
)
GPUS = (4, 8, 16, 32, 64, 128, 256)
BATCH = [
    "prompts.per_step=32",
    "rollout.chunk_size=8",
    "cluster.max_chunks_in_flight=32",
]
"""128 rollouts a step: the paper's 4 keep no more than 4 GPUs busy."""
A_GPU = [*BATCH, "prompts.per_step=8"]
"""32 rollouts on the first 4 GPUs, and as many more as there are GPUs: each size
simulates every message of its step, which bounds what is tried.
"""


def main() -> None:
    """The scaling table of the paper's models."""
    hardware = Hardware()
    kinds: dict[str, tuple[list[str], tuple[int, ...], bool]] = {
        "OPD, 4 rollouts": (["run.method=opd"], GPUS[:1], False),
        "TOPD, 4 rollouts": ([], GPUS[:2], False),
        "OPD": ([*BATCH, "run.method=opd"], GPUS, False),
        "TOPD": (BATCH, GPUS, False),
        "OPD, 8 rollouts a GPU": ([*A_GPU, "run.method=opd"], GPUS[:5], True),
        "TOPD, 8 rollouts a GPU": (A_GPU, GPUS[:5], True),
    }
    rows = []
    for name, (overrides, numbers, weak) in kinds.items():
        config = load_config(PAPER, overrides)
        placed = scaled(
            config,
            lambda one: roofline_rates(one, hardware),
            assumed_workload(config),
            numbers,
            weak=weak,
        )
        rows += [row(name, one, placed[0]) for one in placed]
        print(*rows[-len(numbers) :], sep="\n", flush=True)
    save(
        Claim(
            name="scaling",
            claim=(
                "**prediction**: Qwen3-30B-A3B into Qwen3-4B, tokens/s by number of"
                " GPUs"
            ),
            against="4 GPUs, linear",
            goal="4 to 256 GPUs",
            figure=f"{GPUS[0]} to {GPUS[-1]} GPUs, see the table",
            met=True,
            setting=(
                "`topd plan`: the real driver over simulated actors, rates by the"
                f" roofline of {hardware.name}, the best placement found for each"
                " number of GPUs; the paper's 4 rollouts a step, then 128, then 8 a"
                " GPU. Nothing of it was measured"
            ),
            details=rows,
            words=WORDS,
        )
    )


def row(name: str, placed: Placed, first: Placed) -> dict[str, Any]:
    """A line of the table."""
    predicted, base = placed.prediction, first.prediction
    linear = base.tokens_per_s * placed.gpus / first.gpus
    return {
        "step": name,
        "GPUs": f"{placed.gpus:g}",
        "prompts a step": placed.config.prompts.per_step,
        "placement": placed.described,
        "step, s": round(predicted.step_s, 1),
        "tokens/s": round(predicted.tokens_per_s),
        "of linear": f"{predicted.tokens_per_s / linear:.0%}",
        "bottleneck": predicted.bottleneck,
    }


if __name__ == "__main__":
    main()
