"""What runs on the GPUs, each in its own processes: NCCL, kernels, shared handles.

`python -m topd_ray.commands.doctor.probes NAME …` prints one line on success. The
device is an argument, so that a test runs the same code on a CPU.
"""

import os
import sys
import time
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

from topd_ray.learner.layout import Layout

_LENGTHS = (1, 100, 1000, 1001)
"""Tokens: under and over a block of the kernel, and an odd number."""
_HEADS = 2
_WIDTH = 64
_SCALE = _WIDTH**-0.5
_NCCL_MIB = 1024
_TOLERANCE = 2e-2
"""Of float32 attention: GPUs multiply in TF32."""
_WAIT_S = 20.0


def all_reduce(rank: int, port: int, *, device: str, mib: int) -> float:
    """Add up a tensor of two processes. Returns GB/s over the bus, as nccl-tests do.

    The second of two reductions is timed: the first one connects.
    """
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(
        backend, init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    try:
        values = torch.ones(mib * 2**18, device=device)
        seconds = 0.0
        for _ in range(2):
            started_s = time.monotonic()
            dist.all_reduce(values)
            _finish(device)
            seconds = time.monotonic() - started_s
        if values[0].item() != 4.0 or values[-1].item() != 4.0:
            raise SystemExit(f"a wrong sum: {values[0].item()} for 4")
        return mib * 2**20 / seconds / 1e9
    finally:
        dist.destroy_process_group()


def compare_attention(*, device: str, compiled: bool, slopes: bool = True) -> float:
    """Compare flex attention with torch's own on a CPU.

    Returns the largest difference of outputs, and of slopes, over a few lengths.
    Compiled on a GPU it takes Triton and a C compiler, as training does.
    """
    kernel = torch.compile(flex_attention) if compiled else flex_attention
    worst = 0.0
    for length in _LENGTHS:
        cpu = _outcome(length, "cpu", None, slopes)
        other = _outcome(length, device, kernel, slopes)
        for a, b in zip(cpu, other, strict=True):
            worst = max(worst, float((a - b.cpu()).abs().max()))
    if worst > _TOLERANCE:
        raise SystemExit(f"differs from torch's own on a CPU by {worst:.1e}")
    return worst


def _outcome(length: int, device: str, kernel: Any, slopes: bool) -> list[Tensor]:
    """Return output and slopes of causal attention; torch's own without `kernel`."""
    generator = torch.Generator().manual_seed(length)
    shape = (_HEADS, length, _WIDTH)
    inputs = [
        torch.randn(shape, generator=generator).to(device).requires_grad_(slopes)
        for _ in range(3)
    ]
    query, key, value = inputs
    if kernel is None:
        out = scaled_dot_product_attention(
            query[None], key[None], value[None], is_causal=True, scale=_SCALE
        )[0]
    else:
        layout = Layout(*torch.tensor([[length], [0], [0]], device=device))
        blocks = layout.blocks(None)
        out = kernel(
            query[None], key[None], value[None], block_mask=blocks, scale=_SCALE
        )[0]
    if not slopes:
        return [out]
    return [out.detach(), *torch.autograd.grad(out.square().sum(), inputs)]


def share_memory(*, device: str, wait_s: float = _WAIT_S) -> None:
    """Let another process write into a tensor of this one, by CUDA IPC on a GPU."""
    context = multiprocessing.get_context("spawn")
    values = torch.zeros(4, device=device)
    process = context.Process(target=_write, args=(values,))
    process.start()
    process.join(wait_s)
    if process.is_alive():
        process.kill()
        raise SystemExit(f"the other process did not end within {wait_s:g} s")
    _finish(device)
    if values.tolist() != [1.0] * 4:
        raise SystemExit(f"the other process left {values.tolist()}, not ones")


def _write(values: Tensor) -> None:
    values.fill_(1.0)
    _finish(values.device.type)


def _finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main(arguments: list[str]) -> None:
    """Run one probe on a GPU and print what it has measured."""
    name, *rest = arguments
    if name == "nccl":
        speed = all_reduce(int(rest[0]), int(rest[1]), device="cuda", mib=_NCCL_MIB)
        print(f"{speed:.0f} GB/s")
    elif name == "attention":
        worst = compare_attention(device="cuda", compiled=True)
        print(f"within {worst:.1e} of torch's own on a CPU")
    elif name == "sharing":
        share_memory(device="cuda")
        print("another process writes into the same memory")
    else:
        raise SystemExit(f"no probe {name}")
    sys.stdout.flush()
    # Interpreters with CUDA and NCCL may hang at exit when a peer is gone.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
