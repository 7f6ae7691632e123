"""The distillation loss, forward and backward, at a real vocabulary: peak memory and
time.

    .venv/bin/python benchmarks/bench_loss.py

Reverse KL over every id plus L_traj, fused against the same loss as anyone would write
it in PyTorch (float32 on a CPU, bfloat16 on a GPU). Every peak is that of a process of
its own, above what its inputs take. JSD against Liger's chunked one, which needs no
Triton.

Axes: N positions, D width of student and teacher, V vocabulary, Q window positions, K
ids of a target.
"""

import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from measure import MIN_PAIRS, Claim, in_turn, save
from torch import Tensor

from topd_ray.learner.divergence import TokenLoss
from topd_ray.learner.fused import distillation_losses, tiles
from topd_ray.learner.loss import Positions, Recipe
from topd_ray.learner.teacher import WholeTeacher

V = 151_936  # Qwen3
WINDOW = 50
WINDOWS_A_POSITION = 0.0225  # candidates of the paper
LAMBDA_TRAJ = 0.1
SIZES = ((2048, 256), (3072, 1024))
"""(N, D); the first is the one that is timed."""
LIGER_CHUNK = 1024
THREADS = 2
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32


@dataclass(frozen=True)
class Inputs:
    """Random positions, teacher and targets."""

    hidden_ND: Tensor
    head_VD: Tensor
    positions: Positions

    def gradients(self, total: Tensor) -> None:
        """Computed and let go."""
        torch.autograd.backward(total)
        self.hidden_ND.grad = self.head_VD.grad = None


def make_inputs(num_positions: int, width: int) -> Inputs:
    """Logits of about unit size; the widths of student and teacher are alike."""
    torch.set_num_threads(THREADS)
    rng = torch.Generator(DEVICE).manual_seed(0)
    num_targets = int(WINDOWS_A_POSITION * num_positions) * WINDOW

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=rng, device=DEVICE).mul_(scale).to(DTYPE)

    def ids(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=rng, device=DEVICE)

    positions = Positions(
        teacher=WholeTeacher(
            hidden_TE=normal(num_positions, width),
            head_VE=normal(V, width, scale=width**-0.5),
        ),
        response_ids_T=ids(V, num_positions),
        sampled_logp_T=-normal(num_positions).float().abs(),
        weight_T=torch.ones(num_positions, device=DEVICE),
        reverse_T=torch.zeros(0, dtype=torch.bool, device=DEVICE),
        forward_T=torch.zeros(0, dtype=torch.bool, device=DEVICE),
        window_Q=ids(num_positions, num_targets),
        target_ids_QK=ids(V, num_targets, WINDOW),
        target_weights_QK=normal(num_targets, WINDOW).float().softmax(1),
    )
    head_VD = normal(V, width, scale=width**-0.5).requires_grad_()
    return Inputs(normal(num_positions, width).requires_grad_(), head_VD, positions)


def fused(inputs: Inputs) -> Tensor:
    """What the learner does."""
    return _fused(inputs, inputs.positions, TokenLoss())


def _fused(inputs: Inputs, positions: Positions, token_loss: TokenLoss) -> Tensor:
    recipe = Recipe(token_loss=token_loss, lambda_traj=LAMBDA_TRAJ)
    cut = tiles(V, inputs.hidden_ND.device)
    return distillation_losses(
        inputs.hidden_ND, inputs.head_VD, positions, recipe, cut, V
    ).total


def full_logits(inputs: Inputs) -> Tensor:
    """The same sums on logits of all positions; the target's entropy, a constant, left
    out.
    """
    here = inputs.positions
    assert isinstance(here.teacher, WholeTeacher)
    with torch.no_grad():
        logq_NV = (
            (here.teacher.hidden_TE @ here.teacher.head_VE.T).float().log_softmax(-1)
        )
    logp_NV = (inputs.hidden_ND @ inputs.head_VD.T).float().log_softmax(-1)
    kl = (logp_NV.exp() * (logp_NV - logq_NV)).sum()
    logp_QK = logp_NV[here.window_Q[:, None], here.target_ids_QK]
    return kl - LAMBDA_TRAJ * (here.target_weights_QK * logp_QK).sum()


def peak_bytes(name: str, size: tuple[int, int]) -> float:
    """Of one forward and backward pass, above the inputs; run it in a process of its
    own.
    """
    inputs = make_inputs(*size)
    if DEVICE == "cuda":
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        inputs.gradients(LOSSES[name](inputs))
        return float(torch.cuda.max_memory_allocated() - held)
    Path("/proc/self/clear_refs").write_text(
        "5", encoding="ascii"
    )  # the peak starts from here
    before = _resident("VmRSS")
    inputs.gradients(LOSSES[name](inputs))
    return _resident("VmHWM") - before


def _resident(field: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (kib,) = (line.split()[1] for line in lines if line.startswith(field + ":"))
    return 1024.0 * float(kib)


def compare_memory() -> None:
    """The claim `loss_memory`."""
    rows: list[dict[str, Any]] = []
    for size in SIZES:
        peaks = {name: apart(peak_bytes, name, size) / 2**20 for name in REVERSE_KL}
        rows.append(
            {
                "positions": size[0],
                "width": size[1],
                **{f"{name}, MiB": round(peak) for name, peak in peaks.items()},
                "share": round(peaks["fused"] / peaks["full logits"], 4),
            }
        )
    worst = max(row["share"] for row in rows)
    save(
        Claim(
            name="loss_memory",
            claim="distillation loss, peak memory",
            against="full-logits PyTorch",
            goal="<= 1/8",
            figure=" and ".join(
                f"1/{1 / row['share']:.1f} (D {row['width']})" for row in rows
            ),
            met=worst <= 1 / 8,
            setting=(
                f"{_setting()}; peak of forward and backward above the inputs, each in"
                " a separate process"
            )
            + (
                ""
                if DEVICE == "cuda"
                else " (resident set); both hold the gradient of the head"
            ),
            details=rows,
        )
    )


def apart(work: Callable[..., float], *args: Any) -> float:
    """In a fresh process, where nothing was freed before that could be used again."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, args)


def compare_time() -> None:
    """The claim `loss_time`."""
    inputs = make_inputs(*SIZES[0])
    pairs = in_turn(
        both_ways(inputs, fused), both_ways(inputs, full_logits), pairs=MIN_PAIRS
    )
    save(
        Claim(
            name="loss_time",
            claim="distillation loss, time",
            against="full-logits PyTorch",
            goal=">= 1 x",
            figure=f"{pairs.speedup} x",
            met=pairs.speedup.median >= 1.0,
            setting=(
                f"{_setting()}; forward and backward, N {SIZES[0][0]}, D {SIZES[0][1]}"
            ),
            details=_seconds({"fused": pairs.first_s, "full logits": pairs.second_s}),
        )
    )


def compare_with_liger() -> None:
    """Generalised JSD, beta 0.5, no windows: what Liger has."""
    inputs = make_inputs(*SIZES[0])
    pairs = in_turn(both_ways(inputs, fused_jsd), both_ways(inputs, liger_jsd))
    rows = _seconds({"fused": pairs.first_s, "Liger": pairs.second_s})
    for row, name in zip(rows, ("fused JSD", "Liger's JSD"), strict=True):
        row["peak, MiB"] = round(apart(peak_bytes, name, SIZES[0]) / 2**20)
    save(
        Claim(
            name="loss_liger",
            claim="distillation loss (JSD, beta 0.5), time",
            against="Liger's fused linear JSD",
            goal=">= 1 x",
            figure=f"{pairs.speedup} x",
            met=pairs.speedup.median >= 1.0,
            setting=(
                f"V {V}, {DTYPE}, {_where()}; liger-kernel {version('liger-kernel')},"
                f" chunks of {LIGER_CHUNK} positions (its default); forward and"
                f" backward, N {SIZES[0][0]}, D {SIZES[0][1]}"
            ),
            details=rows,
        )
    )


def fused_jsd(inputs: Inputs) -> Tensor:
    """What the learner does where `divergence: jsd`, without windows."""
    here = inputs.positions
    bare = replace(
        here,
        window_Q=here.window_Q[:0],
        target_ids_QK=here.target_ids_QK[:0],
        target_weights_QK=here.target_weights_QK[:0],
    )
    return _fused(inputs, bare, TokenLoss(divergence="jsd"))


def liger_jsd(inputs: Inputs) -> Tensor:
    """The same sum (its mean over positions times their number)."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    here = inputs.positions
    assert isinstance(here.teacher, WholeTeacher)
    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0,
        weight_soft_loss=1.0,
        beta=0.5,
        compiled=DEVICE == "cuda",
        chunk_size=LIGER_CHUNK,
    )
    teacher = here.teacher
    mean: Tensor = loss(
        inputs.hidden_ND,
        inputs.head_VD,
        teacher.hidden_TE,
        teacher.head_VE,
        here.response_ids_T,
    )
    return mean * len(inputs.hidden_ND)


def both_ways(inputs: Inputs, loss: Callable[[Inputs], Tensor]) -> Callable[[], None]:
    """A forward and a backward pass."""

    def once() -> None:
        inputs.gradients(loss(inputs))
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    return once


def _seconds(of: dict[str, Sequence[float]]) -> list[dict[str, Any]]:
    return [
        {"loss": name, "fastest, s": round(min(s), 3), "slowest, s": round(max(s), 3)}
        for name, s in of.items()
    ]


def _setting() -> str:
    return (
        f"V {V}, {DTYPE}, reverse KL + L_traj (windows of {WINDOW} at 2.25 %),"
        f" {_where()}"
    )


def _where() -> str:
    return "one GPU" if DEVICE == "cuda" else f"{THREADS} CPU threads"


LOSSES: dict[str, Callable[[Inputs], Tensor]] = {
    "fused": fused,
    "full logits": full_logits,
    "fused JSD": fused_jsd,
    "Liger's JSD": liger_jsd,
}
REVERSE_KL = ("fused", "full logits")


if __name__ == "__main__":
    compare_memory()
    compare_time()
    compare_with_liger()
