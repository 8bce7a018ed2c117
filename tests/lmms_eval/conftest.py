"""A working folder with local datasets and tiny checkpoints, and the stock command run in it.

lmms-eval is installed by scripts/install_eval.sh. Without it these tests are skipped, but not in CI.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from no_skips import pytest_runtest_makereport  # noqa: F401

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

if importlib.util.find_spec("mob_lmms_eval") is None and not os.environ.get("CI"):
    warnings.warn("tests/lmms_eval is left out: scripts/install_eval.sh installs what it needs", stacklevel=1)
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def work(tmp_path_factory):
    """A folder to run lmms-eval in: datasets, and liuhaotian/llava-v1.6-vicuna-7b."""
    import eval_data

    import checkpoints

    root = tmp_path_factory.mktemp("work")
    eval_data.write(root)
    source = checkpoints.next_model()
    tower = checkpoints.tower_folder(root / "tower", source)
    name = root / "liuhaotian" / "llava-v1.6-vicuna-7b"
    checkpoints.original_folder(name, tower, source, weights="safetensors", with_tower=True, **checkpoints.NEXT)
    return root


@pytest.fixture(scope="session")
def folders(tmp_path_factory, work):
    """A checkpoint for each of our models, by its name."""
    import checkpoints
    import next_checkpoints
    import qwen_checkpoints

    root = tmp_path_factory.mktemp("models")
    source = checkpoints.model()
    tower = checkpoints.tower_folder(root / "tower", source)
    made = qwen_checkpoints.tokenizer()
    out = {
        "llava-v1.5-mob": checkpoints.original_folder(root / "llava-v1.5", tower, source),
        "llava-v1.6-mob": work / "liuhaotian" / "llava-v1.6-vicuna-7b",
    }
    for name, family in (("llava-onevision-mob", "llava_onevision"), ("video-llava-mob", "video_llava")):
        own = next_checkpoints.source_of(family, root / f"{name}-source")
        out[name] = next_checkpoints.stock_folder(root / name, family, own)
    for name, family in (("qwen2-vl-mob", "qwen2_vl"), ("qwen2.5-vl-mob", "qwen2_5_vl")):
        model = qwen_checkpoints.model(family, made)
        out[name] = qwen_checkpoints.hub_folder(root / name, family, model, made)
    return out


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    import next_checkpoints

    return next_checkpoints.write_video(tmp_path_factory.mktemp("video") / "clip.mp4")


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """For commands: no network, caches of their own, one thread."""
    home = tmp_path_factory.mktemp("home")
    own = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    return {key: value for key, value in os.environ.items() if not key.startswith("LMMS_EVAL")} | own


@pytest.fixture(scope="session")
def run(work, environment):
    """Run a command in the working folder: (exit code, output)."""

    def run(*words, cwd=None, **more):
        done = subprocess.run(
            words, cwd=cwd or work, env=environment | more, capture_output=True, text=True, timeout=600
        )
        return done.returncode, done.stdout + done.stderr

    return run


@pytest.fixture(scope="session")
def lmms():
    """The stock console script of this environment."""
    return str(Path(sys.executable).with_name("lmms-eval"))
