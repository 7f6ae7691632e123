"""Random models with the proportions of a paper's run, small enough for two cores.

Nothing is learned from them; they cost what real ones cost, in proportion.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from topd_ray.toy.tokenizer import END, PAD, make_tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What a model's cost depends on."""

    layers: int
    hidden: int = 128
    vocab: int = 2048
    positions: int = 4096

    @property
    def parameters_a_token(self) -> int:
        """Weights that one token is multiplied with: 2 operations each."""
        attention = 2 * self.hidden * (2 * self.hidden) + 2 * self.hidden * self.hidden
        return self.layers * (attention + 3 * self.hidden * 3 * self.hidden) + (
            self.vocab * self.hidden
        )


LAST_IDS = 4
"""So many ids of 2,048 end a response: lengths are geometric, 512 tokens on average, as
a real batch has short and long ones. (A continuation of 50 tokens is cut short one time
in ten.)
"""
STUDENT, TEACHER = Size(layers=4), Size(layers=3)
"""The teacher has about 0.75 x the student's cost a token, as Qwen3-30B-A3B has of
Qwen3-4B.
"""


def make_model(folder: Path, size: Size, *, seed: int) -> Path:
    """A random Qwen3 with the toy world's tokenizer."""
    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=size.vocab,
        hidden_size=size.hidden,
        intermediate_size=3 * size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=size.hidden // 2,
        max_position_embeddings=size.positions,
        tie_word_embeddings=True,
        initializer_range=0.05,
        eos_token_id=[
            tokenizer.convert_tokens_to_ids(END),
            *range(size.vocab - LAST_IDS + 1, size.vocab),
        ],
        pad_token_id=tokenizer.convert_tokens_to_ids(PAD),
        bos_token_id=None,
        dtype="float32",
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_prompts(path: Path, count: int = 256) -> Path:
    """Problems of a dozen tokens."""
    rows = [
        {
            "prompt": (
                f"what is {n % 10} + {n // 10 % 10} * {n // 100 % 10} modulo 10 ?"
            ),
            "answer": "0",
        }
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
