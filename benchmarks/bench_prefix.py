"""Claim `prefix_cache`: a probe's prefix is not computed again behind a teacher that
has scored it.

One engine scores a rollout and then continues from its candidates. The other side is a
dedicated probe engine (`probe.engine` as a section): it has not read the rollout, so
its first probes fill the cache. Both are the same engine here, with a cache that was
emptied for the second.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from measure import Claim, Pairs, in_turn, save
from transformers import Qwen3Config, Qwen3ForCausalLM

from topd_ray.config.base import EngineConfig
from topd_ray.engines.protocols import GenerationRequest
from topd_ray.engines.vllm_teacher import VllmTeacher
from topd_ray.messages import Ints

GOAL = 0.95
FRACTION, WINDOW = 0.0225, 50
"""The paper's share of probed positions, and its tokens a continuation."""
PROMPT, SHORTEST, LONGEST = 200, 2000, 4000
PAIRS = 5
VOCAB = 4096
MODEL = Qwen3Config(
    vocab_size=VOCAB,
    hidden_size=64,
    intermediate_size=192,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=32,
    max_position_embeddings=8192,
    initializer_range=0.05,
    eos_token_id=VOCAB - 1,
    pad_token_id=0,
    bos_token_id=None,
    tie_word_embeddings=True,
    dtype="float32",
)


@dataclass
class Tally:
    """Prefix tokens of all probes of one side."""

    wanted: int = 0
    cached: int = 0

    @property
    def share(self) -> float:
        """Found in the cache."""
        return self.cached / self.wanted


def rollout(rng: np.random.Generator) -> Ints:
    """Prompt and response tokens that no engine has seen."""
    length = PROMPT + int(rng.integers(SHORTEST, LONGEST))
    return rng.integers(1, VOCAB - 1, length).astype(np.int32)


def probes(sequence: Ints, rng: np.random.Generator) -> list[GenerationRequest]:
    """Greedy continuations from places anywhere in the response."""
    places = np.arange(PROMPT, len(sequence))
    chosen = np.sort(rng.choice(places, round(FRACTION * len(places)), replace=False))
    return [
        GenerationRequest(
            request_id=str(place),
            prompt_ids=sequence[:place],
            max_tokens=WINDOW,
            temperature=0.0,
            top_p=1.0,
            seed=0,
            num_top=0,
        )
        for place in chosen
    ]


def ask(
    engine: VllmTeacher, requests: Sequence[GenerationRequest], tally: Tally
) -> float:
    """Seconds for the probes of a rollout."""
    wanted = {request.request_id: len(request.prompt_ids) for request in requests}
    start = time.perf_counter()
    for generation in engine.generate(requests):
        tally.wanted += wanted[generation.request_id]
        tally.cached += generation.num_cached_tokens
    return time.perf_counter() - start


def measure(folder: Path) -> tuple[Pairs, Tally, Tally]:
    """Probes behind scoring, and probes of an engine of their own, in turn on fresh
    rollouts.
    """
    model = Qwen3ForCausalLM(MODEL)
    model.save_pretrained(folder)
    weights = [(name, one.detach().numpy()) for name, one in model.named_parameters()]
    config = EngineConfig(
        backend="vllm", dtype="float32", enforce_eager=True, kv_cache_gib=0.25
    )
    engine = VllmTeacher(folder, config, max_model_len=PROMPT + LONGEST + WINDOW)
    shared, dedicated = Tally(), Tally()
    # The same rollouts on both sides, each seen first where it is scored.
    first_rng, second_rng = np.random.default_rng(0), np.random.default_rng(0)

    def behind_scoring() -> float:
        sequence = rollout(first_rng)
        engine.hidden_states([sequence])
        return ask(engine, probes(sequence, first_rng), shared)

    def unseen() -> float:
        engine.load_weights(weights)  # empties the cache
        return ask(engine, probes(rollout(second_rng), second_rng), dedicated)

    try:
        return in_turn(behind_scoring, unseen, pairs=PAIRS), shared, dedicated
    finally:
        engine.close()


def claim(pairs: Pairs, shared: Tally, dedicated: Tally) -> Claim:
    """The row of RESULTS.md."""
    sides = (("behind scoring", shared), ("engine of their own", dedicated))
    return Claim(
        name="prefix_cache",
        claim=(
            "prefix tokens that probes take from the cache, behind scoring on one"
            " engine"
        ),
        against="all prefix tokens of the probes",
        goal=f">= {GOAL:.0%}",
        figure=f"{shared.share:.2%}",
        met=shared.share >= GOAL,
        setting=(
            f"vLLM, a rollout of {SHORTEST} to {LONGEST} response tokens at a time"
            f" behind a prompt of {PROMPT}, {FRACTION:.2%} of positions probed, K ="
            f" {WINDOW}, {torch.get_num_threads()} threads; random Qwen3 of width"
            f" {MODEL.hidden_size}; seconds of the probes on an engine that has not"
            f" seen the rollout / behind scoring: {pairs.speedup}"
        ),
        details=[
            {
                "probes": side,
                "prefix tokens": tally.wanted,
                "share from the cache": tally.share,
            }
            for side, tally in sides
        ],
    )


def main() -> None:
    """Run the benchmark."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        save(claim(*measure(Path(folder))))


if __name__ == "__main__":
    main()
