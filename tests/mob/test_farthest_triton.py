"""The Triton kernel in Triton's interpreter, its machine code for two GPUs, and when it is left alone."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mob import farthest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="there is no Triton here")


def child(*words, **environment: str) -> subprocess.CompletedProcess:
    """Python in a process of its own: Triton reads TRITON_INTERPRET once, when it is imported."""
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )


@needs_triton
def test_in_the_interpreter():
    options = ("-p", "no:cacheprovider", "-p", "no:xdist", "--color=no", "-rN")
    done = child("-m", "pytest", *options, HERE / "interpreted_farthest.py", TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert not re.search(r"skipped|failed", done.stdout) and done.stdout.count(".") > 20, done.stdout


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from mob.farthest_triton import _steps, warps

kinds = {"gram": "*fp32", "marks": "*u8", "distance": "*fp32", "K": "i32", "N": "i32", "BLOCK": "constexpr"}
for capability, block in ((80, 128), (90, 4096), (90, 32768)):
    source = ASTSource(_steps, kinds, {"BLOCK": block})
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps(block)})
    print(capability, block, len(made.asm["cubin"]) > 0, ".local" in made.asm["ptx"])
"""


@needs_triton
def test_compiles_for_gpus_that_are_not_here(tmp_path):
    """The interpreter lets pass what the compiler refuses. Distances stay in registers: no array in local memory."""
    done = child("-c", COMPILE, TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == ["80 128 True False", "90 4096 True False", "90 32768 True False"]


def on_cuda(size: int = 100):
    return SimpleNamespace(device=torch.device("cuda"), shape=(1, size, 8))


def test_left_alone_on_cpus_and_when_switched_off(monkeypatch):
    kernel = SimpleNamespace(MOST=200)
    monkeypatch.setattr(farthest, "_tried", lambda device: kernel)
    monkeypatch.delenv("MOB_TRITON", raising=False)
    assert farthest.triton_kernel(on_cuda()) is kernel
    assert farthest.triton_kernel(on_cuda(201)) is None
    assert farthest.triton_kernel(torch.ones(1, 4, 8)) is None
    assert farthest.triton_kernel(torch.ones(1, 4, 8, device="meta")) is None
    monkeypatch.setenv("MOB_TRITON", "0")
    assert farthest.triton_kernel(on_cuda()) is None


def test_without_triton_the_loop_runs(monkeypatch):
    monkeypatch.setitem(sys.modules, "mob.farthest_triton", None)  # what an import of it then does: ImportError
    monkeypatch.delattr("mob.farthest_triton", raising=False)
    farthest._tried.cache_clear()
    assert farthest._tried(torch.device("cuda")) is None
    farthest._tried.cache_clear()


def test_a_triton_that_does_not_work_is_said_once(monkeypatch, recwarn):
    def broken(*_):
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setitem(sys.modules, "mob.farthest_triton", SimpleNamespace(steps=broken, MOST=200))
    monkeypatch.delattr("mob.farthest_triton", raising=False)
    farthest._tried.cache_clear()
    for _ in range(2):
        assert farthest._tried(torch.device("cpu")) is None
    farthest._tried.cache_clear()
    (said,) = recwarn
    assert "Failed to find C compiler" in str(said.message) and "MOB_TRITON=0" in str(said.message)


@pytest.mark.parametrize(
    ("sizes", "gram"),
    [
        ((1, 576, 4096, 32), True),
        ((8, 2880, 4096, 192), True),
        ((1, 11664, 4096, 1158), True),
        ((1, 23328, 4096, 56), False),  # a few passes over V are cheaper
        ((1, 11664, 4096, 56), False),
        ((1, 5000, 1024, 900), False),  # larger than the layer before
    ],
)
def test_where_accelerators_make_the_gram_matrix(sizes, gram):
    assert farthest.makes_gram(*sizes) is gram


@pytest.mark.parametrize("size", [60, 300])
def test_accelerators_choose_what_cpus_choose(size):
    """On both sides of the limit of the Gram matrix, with the loop."""
    units = farthest_units(size)
    taken = torch.zeros(2, size, dtype=torch.bool)
    taken[:, 3] = True
    distance = (1 - farthest.cosines(units, units[:, 3:4])[..., 0]).masked_fill(taken, farthest.NEVER)
    assert farthest.makes_gram(2, size, 32, 19) is (size == 60)
    got = farthest.on_accelerator(units, taken, distance, 20, 19)
    assert torch.equal(got, farthest.in_blocks(units, taken, distance, 20))


def farthest_units(size: int):
    noise = torch.randn(2, size, 32, generator=torch.Generator().manual_seed(size))
    return torch.nn.functional.normalize(noise, dim=-1)
