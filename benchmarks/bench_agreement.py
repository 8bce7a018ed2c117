"""Whether the selection on an accelerator is right: one launch against the loop, and whether anything waits."""

from __future__ import annotations

import os
from unittest import mock

import torch
from bench_selection import SIZES, WIDTH
from torch import Tensor

from mob import covering, farthest
from mob.budget import budget

BATCHES = (1, 8)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
DATA = ("random", "clustered", "repeated")
_SMALL = 3000  # visual tokens that a CPU chooses from in a second


def batch_of(data: str, batch: int, N: int, L: int, width: int, dtype: torch.dtype, device: torch.device):
    """Visual (B, N, d) and prompt (B, L, d), made on the device. ``repeated``: every token is there about ten times."""
    generator = torch.Generator(device).manual_seed(N + batch)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    visual, prompt = noise(batch, N, width), noise(batch, L, width)
    if data != "random":
        groups = max(2, N // (10 if data == "repeated" else 50))
        centres = noise(groups, width)[torch.randint(groups, (batch, N), generator=generator, device=device)]
        visual = centres if data == "repeated" else centres + 0.3 * visual
    return visual.to(dtype), prompt.to(dtype)


def agreement(device: torch.device, sizes: tuple = SIZES, width: int = WIDTH, batches: tuple = BATCHES) -> list[dict]:
    """One row for each size, batch, dtype and kind of data.

    ``kernel``: whether Triton's was used; ``identical``: its tokens are the loop's; ``waits``: what a synchronisation
    with the host was needed for, None if for nothing; ``differ_from_cpu``: tokens of the first sample that a CPU, whose
    products have other errors, does not choose (small sizes only).
    """
    rows = []
    for N, L, K in sizes:
        chosen = budget(N, K)
        for batch in batches:
            for dtype in DTYPES:
                for data in DATA:
                    visual, prompt = batch_of(data, batch, N, L, width, dtype, device)
                    row = {"N": N, "L": L, "K": K, "batch": batch, "dtype": str(dtype).split(".")[1], "data": data}
                    rows.append(row | _one(visual, prompt, (chosen.K, chosen.K_p, chosen.k)))
    return rows


def _one(visual: Tensor, prompt: Tensor, sizes: tuple[int, int, int]) -> dict:
    used = []
    real = farthest.triton_kernel

    def kernel(units: Tensor):
        used.append(real(units))
        return used[-1]

    with mock.patch.object(farthest, "triton_kernel", kernel):
        got = covering.select(visual, prompt, *sizes).indices
    with mock.patch.dict(os.environ, MOB_TRITON="0"):
        loop = covering.select(visual, prompt, *sizes).indices
    out = {"kernel": any(used), "identical": torch.equal(got, loop), "waits": waits(visual, prompt, sizes)}
    if visual.shape[1] <= _SMALL and len(visual) == 1:
        there = covering.select(visual[0].cpu(), prompt[0].cpu(), *sizes).indices
        out["differ_from_cpu"] = len(set(got[0].tolist()) - set(there.tolist()))
    return out


def waits(visual: Tensor, prompt: Tensor, sizes: tuple[int, int, int]) -> str | None:
    """The first thing in a selection that makes the host wait, as torch's debug mode for synchronisations says it."""
    if visual.device.type != "cuda":
        return None
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        covering.select(visual, prompt, *sizes)
    except RuntimeError as problem:
        return str(problem)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return None
