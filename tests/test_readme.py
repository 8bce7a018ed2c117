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
import next_checkpoints
import qwen_checkpoints
from llava.constants import IMAGE_TOKEN_INDEX
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder in which ``liuhaotian/llava-v1.5-7b`` is a tiny model in that layout."""
    folder = tmp_path_factory.mktemp("readme")
    source = checkpoints.model()
    tower = checkpoints.tower_folder(folder / "tower", source)
    checkpoints.original_folder(folder / "liuhaotian" / "llava-v1.5-7b", tower, source)
    tokenizer = qwen_checkpoints.tokenizer()
    qwen = qwen_checkpoints.model("qwen2_vl", tokenizer)
    qwen_checkpoints.hub_folder(folder / "Qwen" / "Qwen2-VL-7B-Instruct", "qwen2_vl", qwen, tokenizer)
    (folder / "images").mkdir()
    (folder / "images" / "scene.png").write_bytes((ROOT / "images" / "scene.png").read_bytes())
    Image.new("RGB", (300, 200), "teal").save(folder / "photo.jpg")
    return folder


def blocks(language, text=README):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


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


@pytest.fixture(scope="module")
def package_workplace(workplace):
    """The same with what the READMEs of the packages name."""
    source = checkpoints.next_model()
    tower = checkpoints.tower_folder(workplace / "tower16", source)
    folder = workplace / "liuhaotian" / "llava-v1.6-vicuna-7b"
    checkpoints.original_folder(folder, tower, source, weights="safetensors", with_tower=True, **checkpoints.NEXT)
    source = next_checkpoints.source_of("llava_onevision", workplace)
    next_checkpoints.stock_folder(workplace / "llava-hf" / "llava-onevision-qwen2-7b-ov-hf", "llava_onevision", source)
    for name in ("blueprint", "a", "b"):
        Image.new("RGB", (90, 60), "teal").save(workplace / f"{name}.png")
    for name in ("film", "clip"):
        next_checkpoints.write_video(workplace / f"{name}.mp4")
    return workplace


@pytest.mark.parametrize("package", ["LLaVA-Next", "Qwen2-VL"])
def test_snippets_of_the_packages(package_workplace, package, monkeypatch, capsys):
    monkeypatch.chdir(package_workplace)
    snippets = blocks("python", (ROOT / package / "README.md").read_text())
    assert snippets
    space: dict = {}
    for number, code in enumerate(snippets):
        exec(compile(code, f"{package} snippet {number}", "exec"), space)
    assert space["model"].config.MoB_config["K"] in (64, 128)


def test_the_releases_snippet(package_workplace, monkeypatch):
    """The two statements of the paper's release; its 35 and 576 contradict a LLaVA-1.6, and the picture wins."""
    monkeypatch.chdir(package_workplace)
    tokenizer, model, image_processor, context_len = load_pretrained_model(
        model_path="liuhaotian/llava-v1.6-vicuna-7b", model_base=None, model_name="llava-v1.6-mob"
    )
    settings = {"l_idx": 2, "image_token_start_index": 35, "image_token_length": 576}
    model.config.MoB_config.update({**settings, "K": 6, "Kp_ratio": 0.5, "k_ratio": 0.125})
    image = Image.open("photo.jpg")
    ids = tokenizer_image_token("USER: <image>\nwhat is it? ASSISTANT:", tokenizer, return_tensors="pt")[None]
    pixels = process_images([image], image_processor, model.config)
    model.pruning.record = True
    with pytest.warns(UserWarning, match="starts at token 35 and has 576 tokens"):
        model.generate(ids, images=pixels, image_sizes=[image.size], max_new_tokens=2, do_sample=False)
    (record,) = model.pruning.records
    assert record.K == 6 and record.N > 6


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
    assert README.count("<!-- table:") == 3 and "| `mob` |" in README


def test_files_that_the_readme_names_exist():
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
    for script in re.findall(r"bash (scripts/\w+\.sh)", README):
        assert (ROOT / script).exists(), script
