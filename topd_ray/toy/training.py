"""ModelRecipe -> a small Qwen3 taught by cross-entropy on worked solutions.

Legend: B solutions in a batch, T tokens, V vocabulary.
"""

import logging
import math
from collections.abc import Iterator
from itertools import islice
from random import Random

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import AdamW, Muon, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from topd_ray.toy.problems import Expression, ProblemShape, distinct_expressions, solve_carelessly
from topd_ray.toy.recipe import ModelRecipe
from topd_ray.toy.wording import question, spoken_words

log = logging.getLogger(__name__)

HEAD_DIM = 32
MAX_POSITIONS = 512
_IGNORED = -100  # a label that cross_entropy skips
_SORTED_TOGETHER = 16  # batches drawn and sorted by length at a time, to pad little
_LOG_EVERY_STEPS = 50

Batch = tuple[Tensor, Tensor]  # token ids and labels, (B, T) each


def make_model(recipe: ModelRecipe, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """An untrained model in the shape of the recipe; its weights follow torch's seed."""
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


def prompt_ids(expression: Expression, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The question in its chat template, up to where the assistant speaks."""
    messages = [{"role": "user", "content": question(expression)}]
    ids: list[int] = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    return ids


def train(
    model: Qwen3ForCausalLM,
    recipe: ModelRecipe,
    shape: ProblemShape,
    tokenizer: PreTrainedTokenizerFast,
    rng: Random,
) -> None:
    """Teach `model` in place, on fresh problems none of which is held out."""
    optimizers = _optimizers(model, recipe)
    schedules = [
        LambdaLR(optimizer, lambda step: _lr_factor(step, recipe)) for optimizer in optimizers
    ]
    model.train()
    batches = _batches(recipe, shape, tokenizer, rng)
    for step, (ids_BT, labels_BT) in enumerate(islice(batches, recipe.steps), start=1):
        logits_BTV = model(input_ids=ids_BT[:, :-1]).logits
        loss = cross_entropy(
            logits_BTV.flatten(0, 1), labels_BT[:, 1:].flatten(), ignore_index=_IGNORED
        )
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        model.zero_grad()
        if step % _LOG_EVERY_STEPS == 0 or step == recipe.steps:
            log.info("step %d of %d: loss %.4f nats a token", step, recipe.steps, loss.item())
    model.eval()


def _optimizers(model: Qwen3ForCausalLM, recipe: ModelRecipe) -> list[Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings, output head and norms.

    AdamW alone needs about four times the steps here.
    """
    matrices = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    inside = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in inside]
    return [
        Muon(matrices, lr=recipe.muon_lr, weight_decay=0.01),
        AdamW(others, lr=recipe.adamw_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def _lr_factor(step: int, recipe: ModelRecipe) -> float:
    """Linear warm-up, then a cosine from one to a tenth."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, progress)))


def _batches(
    recipe: ModelRecipe, shape: ProblemShape, tokenizer: PreTrainedTokenizerFast, rng: Random
) -> Iterator[Batch]:
    """Batches of solutions of like length, for ever."""
    expressions = distinct_expressions(rng, shape, held_out=False)
    while True:
        drawn = islice(expressions, recipe.batch * _SORTED_TOGETHER)
        examples = [labelled_example(expression, recipe, tokenizer, rng) for expression in drawn]
        examples.sort(key=lambda example: len(example[0]))
        starts = list(range(0, len(examples), recipe.batch))
        rng.shuffle(starts)
        for start in starts:
            yield _padded(examples[start : start + recipe.batch], tokenizer)


def labelled_example(
    expression: Expression, recipe: ModelRecipe, tokenizer: PreTrainedTokenizerFast, rng: Random
) -> tuple[list[int], list[int]]:
    """Token ids of prompt and response, and labels that leave out what is not to be learnt."""
    solution = solve_carelessly(expression, rng, recipe.slips)
    words, wrong_turns = spoken_words(solution, recipe.wording, rng)
    response: list[int] = tokenizer.convert_tokens_to_ids(words)
    unlearnt = frozenset[int]() if recipe.learns_to_slip else wrong_turns
    labels = [_IGNORED if at in unlearnt else token for at, token in enumerate(response)]
    prompt, end = prompt_ids(expression, tokenizer), tokenizer.eos_token_id
    return [*prompt, *response, end], [_IGNORED] * len(prompt) + [*labels, end]


def _padded(
    examples: list[tuple[list[int], list[int]]], tokenizer: PreTrainedTokenizerFast
) -> Batch:
    """One rectangle; padding stands to the right, where causal attention never looks from."""
    width = max(len(ids) for ids, _ in examples)
    pad = tokenizer.pad_token_id
    return (
        torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in examples]),
        torch.tensor([labels + [_IGNORED] * (width - len(labels)) for _, labels in examples]),
    )
