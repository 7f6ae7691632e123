"""Windows that hang off their rollout in one sequence, and sequences without
padding.
"""

import copy
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from measure import Claim, Pairs, in_turn, save
from torch import Tensor
from transformers import Qwen3Config, Qwen3Model

from topd_ray.config import ObjectiveConfig
from topd_ray.driver.dealing import deal_to_ranks
from topd_ray.learner.attention import PACKED
from topd_ray.learner.layout import Layout
from topd_ray.messages import Rollout, SampledSignal, ScoredRollout
from topd_ray.windows import pack

THREADS = 2
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PROMPT, K, SHARE = 128, 50, 0.0225
SAMPLE = 6
"""Windows that stand for all in the naive way at 4096; evenly spread over the
rollout.
"""
VOCABULARY, WIDTH = 1_000, 256


@dataclass(frozen=True)
class Tree:
    """A rollout of PROMPT + N tokens and its windows, with a given gradient for every
    state.
    """

    ids_L: Tensor
    layout: Layout
    given_LD: Tensor
    """Of what predicts a token of the response or of a window."""
    trunk: int
    """Tokens of the rollout; its windows, of K - 1 tokens each, come behind."""
    branches: list[int]


def make_tree(num_tokens: int) -> Tree:
    """Windows evenly spread over a random rollout of `num_tokens`."""
    rng = torch.Generator().manual_seed(num_tokens)
    trunk, own = (
        PROMPT + num_tokens - 1,
        K - 1,
    )  # the last token of either predicts nothing
    count = round(SHARE * num_tokens)
    branches = [PROMPT + (2 * w + 1) * num_tokens // (2 * count) for w in range(count)]
    length = trunk + count * own
    given_LD = torch.randn(length, WIDTH, generator=rng)
    given_LD[: PROMPT - 1] = 0.0
    return Tree(
        ids_L=torch.randint(VOCABULARY, (length,), generator=rng).to(DEVICE),
        layout=Layout(
            torch.tensor([trunk] + [own] * count, device=DEVICE),
            torch.zeros(count + 1, dtype=torch.long, device=DEVICE),
            torch.tensor([0, *branches], device=DEVICE),
        ),
        given_LD=given_LD.to(DEVICE),
        trunk=trunk,
        branches=branches,
    )


def make_students() -> tuple[Any, Any]:
    """The same small Qwen3 without a head: with our attention, and as it comes."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=8192,
    )
    plain = Qwen3Model._from_config(config, attn_implementation="sdpa").to(DEVICE)
    ours = Qwen3Model._from_config(
        copy.deepcopy(config), attn_implementation=PACKED
    ).to(DEVICE)
    ours.load_state_dict(plain.state_dict())
    return ours, plain


def together(student: Any, tree: Tree) -> float:
    """Forward and backward over rollout and windows at once; the loss."""
    states_1LD = student(
        input_ids=tree.ids_L[None],
        position_ids=tree.layout.place_L[None],
        use_cache=False,
        layout=tree.layout,
    ).last_hidden_state
    loss = (states_1LD[0] * tree.given_LD).sum()
    loss.backward()
    return loss.item()


def rollout_alone(student: Any, tree: Tree) -> float:
    """Without its windows."""
    trunk = slice(0, tree.trunk)
    return apart(student, tree.ids_L[trunk], tree.given_LD[trunk])


def window_alone(student: Any, tree: Tree, w: int) -> float:
    """Behind its whole prefix; only the window's own states have a gradient."""
    start = tree.trunk + w * (K - 1)
    own = slice(start, start + K - 1)
    ids_L = torch.cat([tree.ids_L[: tree.branches[w]], tree.ids_L[own]])
    return apart(student, ids_L, tree.given_LD[own])


def apart(student: Any, ids_L: Tensor, given: Tensor) -> float:
    """Forward and backward over one sequence; no padding, as SDPA is fastest without a
    mask.
    """
    states_1LD = student(input_ids=ids_L[None], use_cache=False).last_hidden_state
    loss = (states_1LD[0, -len(given) :] * given).sum()
    loss.backward()
    return loss.item()


def time_windows(ours: Any, plain: Any, tree: Tree, *, sample: int | None) -> Pairs:
    """One forward against all; `sample` windows stand for all, where that is not
    None.
    """
    count = len(tree.branches)
    num = sample or count
    chosen = [(2 * i + 1) * count // (2 * num) for i in range(num)]

    def one_forward() -> None:
        together(ours, tree)
        wait()

    def one_by_one() -> float:
        start = time.perf_counter()
        rollout_alone(plain, tree)
        wait()
        between = time.perf_counter()
        for w in chosen:
            window_alone(plain, tree, w)
        wait()
        return between - start + (time.perf_counter() - between) * count / num

    return in_turn(one_forward, one_by_one, pairs=5)


def wait() -> None:
    """Until the GPU has done what it was told."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def difference(ours: Any, plain: Any, tree: Tree) -> float:
    """Relative distance of the two gradients of all weights."""
    for student in (ours, plain):
        student.zero_grad()
    one = together(ours, tree)
    many = rollout_alone(plain, tree)
    many += sum(window_alone(plain, tree, w) for w in range(len(tree.branches)))
    assert abs(one - many) <= 1e-4 * tree.given_LD.norm().item() * WIDTH**0.5, (
        one,
        many,
    )
    mine, theirs = (
        torch.cat([p.grad.flatten() for p in student.parameters()])
        for student in (ours, plain)
    )
    return ((mine - theirs).norm() / theirs.norm()).item()


def claim_windows() -> None:
    """`tree_windows`, with the equality of both ways' gradients checked once."""
    ours, plain = make_students()
    rows, speedups = [], []
    for num_tokens, sample in ((1024, None), (4096, SAMPLE)):
        tree = make_tree(num_tokens)
        apart_by = difference(ours, plain, tree) if sample is None else None
        pairs = time_windows(ours, plain, tree, sample=sample)
        speedups.append(pairs.speedup)
        rows.append(
            {
                "N": num_tokens,
                "windows": len(tree.branches),
                "tokens in one forward": len(tree.ids_L),
                "tokens one by one": (
                    PROMPT
                    + num_tokens
                    - 1
                    + sum(tree.branches)
                    + len(tree.branches) * (K - 1)
                ),
                "one forward, s": min(pairs.first_s),
                "one by one, s": min(pairs.second_s),
                "speed-up": str(pairs.speedup),
                "gradients differ by": (
                    "not compared" if apart_by is None else f"{apart_by:.1e}"
                ),
            }
        )
    save(
        Claim(
            name="tree_windows",
            claim=(
                "`resample` windows beside their rollout in one forward and backward, N"
                " = 4096"
            ),
            against=(
                "a forward and backward over each window's whole prefix, and the"
                " rollout's"
            ),
            goal=">= 8 x",
            figure=str(speedups[-1]) + f"; at N = 1024: {speedups[0]}",
            met=speedups[-1].median >= 8,
            setting=(
                f"Qwen3 of 4 layers, width {WIDTH}, float32, no head; prompt of"
                f" {PROMPT}, K = {K}, m/N = {SHARE:.2%}; {where()}. One by one:"
                " transformers' SDPA, one sequence at a time, no padding; at 4096"
                f" {SAMPLE} evenly spread windows are timed for all"
            ),
            details=rows,
        )
    )


def where() -> str:
    """What computes, in words."""
    return torch.cuda.get_device_name() if DEVICE == "cuda" else f"{THREADS} threads"


def scored(name: str, length: int) -> ScoredRollout:
    """A rollout of `length` tokens in all, of which 20 are the prompt."""
    prompt_P, response_N = np.zeros(20, np.int32), np.zeros(length - 20, np.int32)
    logp_N = np.zeros(length - 20, np.float32)
    return ScoredRollout(
        rollout=Rollout(
            rollout_id=name,
            prompt_id=name,
            position=0,
            policy_version=0,
            prompt_ids_P=prompt_P,
            teacher_prompt_ids_P=prompt_P,
            response_ids_N=response_N,
            logp_O=logp_N,
            top_ids_OM=response_N[:, None],
            top_logp_OM=logp_N[:, None],
            finish_reason="stop",
        ),
        signal=SampledSignal(logq_N=logp_N),
        token_loss_N=logp_N,
        logq_N=logp_N,
        entropy_N=logp_N[:0],
    )


def padded(lengths: list[int], budget: int, ranks: int) -> list[list[list[int]]]:
    """Rows dealt out longest first, as many as padded to the longest fit a
    micro-batch.
    """
    order = sorted(lengths, reverse=True)
    shares = []
    for rank in range(ranks):
        batches: list[list[int]] = []
        for length in order[rank::ranks]:
            if batches and (len(batches[-1]) + 1) * batches[-1][0] <= budget:
                batches[-1].append(length)
            else:
                batches.append([length])
        shares.append(batches)
    return shares


def compare_packing(
    name: str, lengths: list[int], budget: int, ranks: int
) -> dict[str, Any]:
    """A row of the table, from the micro-batches that `pack` makes."""
    rollouts = [scored(f"r{i}", length + 1) for i, length in enumerate(lengths)]
    shares = [
        pack(
            [rollouts[i] for i in indices],
            None,
            threshold=0.0,
            objective=ObjectiveConfig(lambda_traj=0.0),
            token_budget=budget,
            run_seed=0,
        )
        for indices in deal_to_ranks(lengths, ranks)
    ]
    loads = [sum(batch.input_ids_L.size for batch in share) for share in shares]
    assert sum(loads) == sum(lengths)
    area = sum(len(b) * b[0] for share in padded(lengths, budget, ranks) for b in share)
    return {
        "lengths": name,
        "ranks": ranks,
        "padding, %": 100 * (1 - sum(lengths) / sum(loads)),
        "padding of rows, %": 100 * (1 - sum(lengths) / area),
        "micro-batches a rank": max(map(len, shares)),
        "of rows": max(map(len, padded(lengths, budget, ranks))),
        "tokens of the fullest rank / mean": max(loads) * ranks / sum(loads),
    }


def claim_padding() -> None:
    """`packing_padding`, on lengths as the toy's and on a long tail."""
    rng = np.random.default_rng(0)
    toy = rng.integers(30, 221, 64).tolist()
    tail = (
        np.clip(rng.lognormal(np.log(2000), 0.9, 128), 100, 16_000).astype(int).tolist()
    )
    rows = [
        compare_packing("64 of 30..220, budget 8,192", toy, 8192, 1),
        compare_packing("64 of 30..220, budget 2,048", toy, 2048, 2),
        compare_packing("128 log-normal, median 2,000, budget 32,768", tail, 32_768, 1),
        compare_packing("128 log-normal, median 2,000, budget 32,768", tail, 32_768, 8),
    ]
    most = max(row["padding, %"] for row in rows)
    before = [row["padding of rows, %"] for row in rows]
    save(
        Claim(
            name="packing_padding",
            claim="padding in a micro-batch",
            against="rows of like length, padded to the longest",
            goal="<= 5 %",
            figure=f"{most:.0f} % against {min(before):.1f} to {max(before):.1f} %",
            met=most <= 5,
            setting=(
                "share of the learner's tokens that are no token, over drawn lengths;"
                " nothing is timed"
            ),
            details=rows,
        )
    )


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    claim_padding()
    claim_windows()
