"""Compiled training of the scenes, as ``scripts/scenes/train.sh`` gives it: no stray reads, the same bytes again."""

import hashlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

# Every tensor of the batch begins a page, as those of a loader's worker do, and the page before may not be read.
GUARDED = """
import ctypes, mmap
import torch
from llava.scenes.losses import untrained
from llava.scenes.packing import ScenePictures
from llava.scenes.trainer import SceneTrainer, arguments
from torch.utils.data import default_collate

libc = ctypes.CDLL(None, use_errno=True)

def guarded(tensor):
    room = mmap.mmap(-1, mmap.PAGESIZE + tensor.nbytes)
    first = ctypes.addressof(ctypes.c_char.from_buffer(room))
    if libc.mprotect(ctypes.c_void_p(first), ctypes.c_size_t(mmap.PAGESIZE), 0):
        raise OSError(ctypes.get_errno(), "mprotect")
    there = torch.frombuffer(room, dtype=tensor.dtype, count=tensor.numel(), offset=mmap.PAGESIZE)
    return there.view(tensor.shape).copy_(tensor)

data = ScenePictures(1, 2, seed=5, hide=1.0)
settings = arguments({out!r}, 1, 2, 1e-3, 0, 1, "cpu")
trainer = SceneTrainer(untrained(), data, settings, compiled=True)
batch = {{name: guarded(tensor) for name, tensor in default_collate([data[0], data[1]]).items()}}
loss = trainer.compute_loss(trainer.model, batch)
loss.backward()
print("loss", float(loss))
"""


def test_compiled_passes_read_nothing_before_a_batch(tmp_path):
    done = subprocess.run([sys.executable, "-c", GUARDED.format(out=str(tmp_path))], capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])  # -11: it read there
    assert done.stdout.startswith("loss ")


def test_two_compiled_runs_end_with_the_same_bytes(tmp_path):
    flags = ["--align-steps", "3", "--align-pictures", "8", "--steps", "20", "--pictures", "24"]
    flags += ["--evidence-steps", "3", "--device", "cpu"]
    made = []
    for name in "ab":
        command = [sys.executable, "-m", "llava.scenes.train", "--out", str(tmp_path / name), *flags]
        subprocess.run(command, check=True, capture_output=True)
        weights = (tmp_path / name / "evidence" / "checkpoint-3" / "model.safetensors").read_bytes()
        made.append(hashlib.sha256(weights).hexdigest())
    assert made[0] == made[1]
