"""A student and a teacher with random weights, larger than the toy world's, and their
tokenizer.
"""

import json
import shutil
from pathlib import Path

import torch
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

VOCAB = 8192
NUM_STOPS = 40
"""Ids that end a response: a random model says one about every VOCAB / NUM_STOPS
tokens, so that lengths are spread as widely (geometrically) as those of reasoning
models are.
"""
HEAD_DIM = 64


def make_pair(tokenizer: Path, folder: Path) -> tuple[Path, Path]:
    """Write `student` (23 M parameters) and `teacher` (63 M), made for the words of
    `tokenizer`.
    """
    student = _make(
        tokenizer, folder / "student", hidden=512, layers=6, heads=8, seed=0
    )
    teacher = _make(
        tokenizer, folder / "teacher", hidden=768, layers=8, heads=12, seed=1
    )
    return student, teacher


def _make(
    tokenizer: Path, folder: Path, *, hidden: int, layers: int, heads: int, seed: int
) -> Path:
    torch.manual_seed(seed)
    stops = list(range(VOCAB - NUM_STOPS, VOCAB))
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=HEAD_DIM,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        eos_token_id=stops,
        pad_token_id=0,
        bos_token_id=None,
        dtype="float32",
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    GenerationConfig(eos_token_id=stops, pad_token_id=0).save_pretrained(folder)
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(tokenizer / name, folder / name)
    _with_fillers(tokenizer / "tokenizer.json", folder / "tokenizer.json")
    return folder


def _with_fillers(source: Path, target: Path) -> None:
    """Each id of the vocabulary needs a word, for TRL turns responses back into
    text.
    """
    facts = json.loads(source.read_text(encoding="utf-8"))
    known = facts["model"]["vocab"]
    known |= {f"word{place}": place for place in range(len(known), VOCAB)}
    target.write_text(json.dumps(facts), encoding="utf-8")
