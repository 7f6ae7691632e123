"""Random Qwen3 folders of a few thousand parameters, made in milliseconds."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

WORDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "user", "assistant", "<unk>"]
VOCAB = WORDS + [str(n) for n in range(10)] + [f"w{n}" for n in range(48)]
EOS_ID, PAD_ID = VOCAB.index("<|im_end|>"), VOCAB.index("<|endoftext|>")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|> {{ m.role }} {{ m.content }} <|im_end|> {%"
    " endfor %}{% if add_generation_prompt %}<|im_start|> assistant{% endif %}"
)


def make_model(
    folder: Path,
    *,
    hidden: int,
    layers: int,
    seed: int,
    tied: bool,
    heads: int = 2,
    key_heads: int = 1,
) -> Path:
    """Write a random fp32 Qwen3 with sharp logits, and its tokenizer."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(VOCAB),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        initializer_range=0.2,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
        bos_token_id=None,
        dtype="float32",
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a word-level tokenizer over VOCAB with a chat template."""
    tokenizer = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(VOCAB)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
    )


def make_experts(folder: Path) -> Path:
    """Write a random Qwen3 mixture of experts, and the tokenizer."""
    torch.manual_seed(3)
    config = Qwen3MoeConfig(
        vocab_size=len(VOCAB),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
        bos_token_id=None,
        dtype="float32",
    )
    Qwen3MoeForCausalLM(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def pad_model(source: Path, folder: Path, *, rows: int) -> Path:
    """Copy a model with more rows in embedding and head: of random numbers.

    Their logits are the largest, so that any use of them shows.
    """
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(9)
    for name in {"model.embed_tokens.weight", "lm_head.weight"} & tensors.keys():
        padding = torch.randn(rows, tensors[name].shape[1], generator=generator)
        tensors[name] = torch.cat([tensors[name], 3 * padding])
        size = len(tensors[name])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": size}))
    return folder
