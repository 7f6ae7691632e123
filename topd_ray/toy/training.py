"""Train a small Qwen3 by cross-entropy on worked solutions.

Legend: B solutions in a batch, T tokens, V vocabulary.
"""

import logging
import math
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from random import Random

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import AdamW, Muon, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from topd_ray.toy.drawing import distinct_expressions
from topd_ray.toy.examples import IGNORED, labelled_example
from topd_ray.toy.recipe import ModelRecipe, WorldRecipe

log = logging.getLogger(__name__)

HEAD_DIM = 32
MAX_POSITIONS = 1024
# Batches that are drawn together and sorted by length, so that little is padding.
_SORTED_TOGETHER = 16
_LOG_EVERY_STEPS = 50

Batch = tuple[Tensor, Tensor]  # token ids and labels, (B, T) each


def make_model(
    recipe: ModelRecipe, tokenizer: PreTrainedTokenizerFast
) -> Qwen3ForCausalLM:
    """Return an untrained model of the recipe's shape; torch's seed decides weights."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.feed_forward,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        head_dim=HEAD_DIM,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=recipe.tied_embeddings,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=torch.float32,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model


def train(
    model: Qwen3ForCausalLM,
    speaker: ModelRecipe,
    recipe: WorldRecipe,
    tokenizer: PreTrainedTokenizerFast,
    rng: Random,
) -> None:
    """Teach `model` in place, on fresh problems of the training split."""
    optimizers = _optimizers(model, speaker)
    schedules = [
        LambdaLR(optimizer, lambda step: _lr_factor(step, speaker))
        for optimizer in optimizers
    ]
    model.train()
    batches = _batches(speaker, recipe, tokenizer, rng)
    for step, (ids_BT, labels_BT) in enumerate(islice(batches, speaker.steps), start=1):
        logits_BTV = model(input_ids=ids_BT[:, :-1]).logits
        loss = cross_entropy(
            logits_BTV.flatten(0, 1), labels_BT[:, 1:].flatten(), ignore_index=IGNORED
        )
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        model.zero_grad()
        if step % _LOG_EVERY_STEPS == 0 or step == speaker.steps:
            log.info(
                "step %d of %d: loss %.4f nats a token",
                step,
                speaker.steps,
                loss.item(),
            )
    model.eval()


def _optimizers(model: Qwen3ForCausalLM, speaker: ModelRecipe) -> list[Optimizer]:
    """Return Muon for the matrices inside the layers, AdamW for all other weights.

    AdamW alone needs about four times the steps here.
    """
    matrices = [
        weight for weight in model.model.layers.parameters() if weight.ndim == 2
    ]
    inside = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in inside]
    return [
        Muon(matrices, lr=speaker.muon_lr, weight_decay=0.01),
        AdamW(others, lr=speaker.adamw_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def _lr_factor(step: int, speaker: ModelRecipe) -> float:
    """Return the factor of a step: linear warm-up, then a cosine from 1 to 0.1."""
    if step < speaker.warmup_steps:
        return (step + 1) / speaker.warmup_steps
    progress = (step - speaker.warmup_steps) / max(
        1, speaker.steps - speaker.warmup_steps
    )
    return 0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, progress)))


def _batches(
    speaker: ModelRecipe,
    recipe: WorldRecipe,
    tokenizer: PreTrainedTokenizerFast,
    rng: Random,
) -> Iterator[Batch]:
    """Yield batches of solutions of one form and of similar length, without end."""
    expressions = distinct_expressions(rng, recipe.shape, "train")
    shares = [lesson.share for lesson in speaker.lessons]
    while True:
        batches = []
        drawn_lessons = Counter(
            rng.choices(speaker.lessons, shares, k=_SORTED_TOGETHER)
        )
        for lesson, num_batches in drawn_lessons.items():
            examples = [
                labelled_example(
                    expression, lesson.form, speaker, recipe, tokenizer, rng
                )
                for expression in islice(expressions, lesson.batch * num_batches)
            ]
            examples.sort(key=lambda example: len(example[0]))
            batches += [
                examples[start : start + lesson.batch]
                for start in range(0, len(examples), lesson.batch)
            ]
        rng.shuffle(batches)
        for batch in batches:
            yield _padded(batch, tokenizer)


def _padded(
    examples: list[tuple[list[int], list[int]]], tokenizer: PreTrainedTokenizerFast
) -> Batch:
    """Return the batch as rectangles, padded on the right.

    Padding there changes nothing: causal attention lets no real token see it.
    """
    width = max(len(ids) for ids, _ in examples)
    pad = tokenizer.pad_token_id
    return (
        torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in examples]),
        torch.tensor(
            [labels + [IGNORED] * (width - len(labels)) for _, labels in examples]
        ),
    )
