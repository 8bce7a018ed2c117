"""What the README tells people to type works as written, and its tables say what the results say."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import checkpoints
from llava.constants import IMAGE_TOKEN_INDEX
from llava.mm_utils import tokenizer_image_token

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder in which ``liuhaotian/llava-v1.5-7b`` is a tiny model in that layout."""
    folder = tmp_path_factory.mktemp("readme")
    source = checkpoints.model()
    tower = checkpoints.tower_folder(folder / "tower", source)
    checkpoints.original_folder(folder / "liuhaotian" / "llava-v1.5-7b", tower, source)
    (folder / "images").mkdir()
    (folder / "images" / "scene.png").write_bytes((ROOT / "images" / "scene.png").read_bytes())
    Image.new("RGB", (300, 200), "teal").save(folder / "photo.jpg")
    return folder


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_python_snippets(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    space: dict = {}
    for number, code in enumerate(blocks("python")):
        if number == 1:  # the snippet that says `inputs` without making them
            prompt = "USER: <image>\ndescribe the picture ASSISTANT:"
            ids = tokenizer_image_token(prompt, space["tokenizer"], IMAGE_TOKEN_INDEX, return_tensors="pt")[None]
            space["inputs"] = space["model"].expand_images(ids, None, torch.zeros(1, 3, 28, 28))
            space["inputs"]["max_new_tokens"] = 2
        exec(compile(code, f"README snippet {number}", "exec"), space)
    assert space["model"].config.MoB_config["K"] == 64
    assert space["record"].K == 4 and len(space["record"].keep_indices) == 4


COMMANDS = [
    command.replace("\\\n", " ")
    for block in blocks("bash")
    for command in re.findall(r"^python -m (?:.*\\\n)*.*$", block, re.MULTILINE)
]


def test_there_are_commands_to_test():
    assert len(COMMANDS) == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(workplace, command):
    words = shlex.split(command)
    done = subprocess.run([sys.executable, *words[1:]], cwd=workplace, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    if "--overlay" in words:
        assert (workplace / words[words.index("--overlay") + 1]).exists()


def test_tables_are_what_the_results_say():
    command = [sys.executable, str(ROOT / "benchmarks" / "make_tables.py"), "--check"]
    assert subprocess.run(command).returncode == 0
    assert README.count("<!-- table:") == 2 and "| `mob` |" in README


def test_files_that_the_readme_names_exist():
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
    for script in re.findall(r"bash (scripts/\w+\.sh)", README):
        assert (ROOT / script).exists(), script
