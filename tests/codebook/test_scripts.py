"""The evaluation scripts of the reference release: 18 of them, each a task that lmms-eval has, asked of our models."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from llava.conversation import conv_templates
from mob.methods import create

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "scripts" / "codebook"
SCRIPTS = sorted(file for file in FOLDER.glob("*.sh") if file.name != "codebook_common.sh")
THETA = {"llava15": 0.45, "next": 0.11, "ov": 0.5}


def ask(script, *words, **environment):
    given = {**os.environ, "MOB_PYTHON": "echo", **environment}
    return subprocess.run(["bash", str(script), *words], capture_output=True, text=True, env=given)


def command(script, *words, **environment):
    """The options of lmms-eval that a script would give, and its --model_args."""
    done = ask(script, *words, **environment)
    assert done.returncode == 0, done.stderr
    first, second, *rest = done.stdout.split()
    assert (first, second) == ("-m", "lmms_eval")
    options = dict(zip(rest[::2], rest[1::2], strict=True))
    return options, dict(part.split("=", 1) for part in options["--model_args"].split(","))


def test_there_are_as_many_as_the_reference_has():
    found = [file.stem.split("_", 1) for file in SCRIPTS]
    assert len(found) == 18
    assert [sum(family == one for family, _ in found) for one in THETA] == [7, 8, 3]
    readme = (ROOT / "RedundancyCodebook" / "README.md").read_text()
    assert all(name in readme for _, name in found)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda file: file.stem)
def test_each_asks_our_model_for_a_task_that_is_there(script):
    options, args = command(script, "c.safetensors")
    family = script.stem.split("_")[0]
    assert (args["method"], args["path"], float(args["theta"])) == ("codebook", "c.safetensors", THETA[family])
    assert args.get("conv_template", "vicuna_v1") in conv_templates
    assert os.access(script, os.X_OK) and args["pretrained"] in script.read_text()
    lmms = pytest.importorskip("lmms_eval")
    from mob_lmms_eval.arguments import read
    from mob_lmms_eval.models.llava import Llava
    from mob_lmms_eval.models.llava_next import LlavaOnevision
    from mob_lmms_eval.register import MODELS

    assert options["--model"] in MODELS
    kinds = (LlavaOnevision if family == "ov" else Llava).OPTIONS
    _, mob = read(args | {"theta": float(args["theta"]), "frames": None}, kinds)
    assert create(mob["method"], mob["options"]).theta == THETA[family]
    tasks = Path(lmms.__file__).parent / "tasks"
    wanted = re.compile(rf"""^(task|group)\s*:\s*["']?{options["--tasks"]}["']?\s*$""", re.MULTILINE)
    assert any(wanted.search(file.read_text(errors="replace")) for file in tasks.glob("*/*.yaml"))


def test_what_is_kept():
    script = FOLDER / "llava15_pope.sh"
    _, args = command(script, "c.safetensors", "K=0.2", "/models/x", "--limit", "3", MOB_MODEL_ARGS="dtype=float32")
    assert args == {
        "pretrained": "/models/x",
        "method": "codebook",
        "path": "c.safetensors",
        "policy": "count",
        "K": "0.2",
        "dtype": "float32",
    }
    assert command(script, "random", "K=64")[1]["early"] == "True"
    assert command(script, "all")[1] == {"pretrained": "liuhaotian/llava-v1.5-7b", "mob": "False"}
    for words in ([], ["--help"], ["random"], ["c.safetensors", "0.45"]):
        done = ask(script, *words)
        assert done.returncode == 2 and not done.stdout and done.stderr


@pytest.mark.slow
def test_one_runs_to_its_score(tmp_path):
    """On the embedded checkpoint and its own task; of two --tasks the last counts."""
    pytest.importorskip("lmms_eval")
    from llava.scenes.checkpoint import PATH

    book = ROOT / "codebooks" / "scenes" / "codebook.safetensors"
    flags = ["--tasks", "mob_scenes", "--limit", "2", "--output_path", str(tmp_path)]
    environment = {k: v for k, v in os.environ.items() if k != "MOB_PYTHON"}
    words = [str(FOLDER / "llava15_pope.sh"), str(book), "K=65", str(PATH), *flags]
    done = subprocess.run(["bash", *words], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "mob_scenes" in done.stdout
