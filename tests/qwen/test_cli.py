"""python -m Qwen2VL_MoB.chat: answers, flags, and one clear line for whatever is wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from Qwen2VL_MoB import chat

ROOT = Path(__file__).parents[2]
BASE = ["--query", "describe the picture", "--max-new-tokens", "4", "--temperature", "0", "--device", "cpu"]


def ask(folder, *more):
    return chat.main(["--model-path", str(folder), *BASE, *map(str, more)])


@pytest.fixture(scope="module")
def file(tmp_path_factory, picture):
    path = tmp_path_factory.mktemp("files") / "x.png"
    picture.save(path)
    return path


def test_the_answer_is_that_of_chat(folders, loaded, file, picture, clip, capsys):
    model, tokenizer = loaded["qwen2_5_vl"]
    expected = model.chat(tokenizer, "describe the picture", image=[picture] * 2, max_new_tokens=4, do_sample=False)
    folder = folders["qwen2_5_vl", "hub"]
    assert ask(folder, "--image-file", file, file) == ask(folder, "--image-file", file, "--image-file", file) == 0
    out, err = capsys.readouterr()
    assert out.split() == expected.split() * 2 and expected.split()
    assert err.count("nothing was pruned") == 2
    video = {"video": str(clip), "fps": 1, "max_frames": 4}
    expected = model.chat(tokenizer, "describe the picture", video=video, max_new_tokens=4, do_sample=False)
    assert ask(folder, "--video-file", clip, "--fps", 1, "--max-frames", 4) == 0
    assert capsys.readouterr().out.strip() == expected


def test_flags(folders, file, tmp_path, capsys):
    folder, record = folders["qwen2_vl", "hub"], tmp_path / "r.json"
    flags = ["--mob-K", "4", "--mob-Kp-ratio", "0.5", "--mob-layer", "3", "--save-record", str(record)]
    assert ask(folder, "--image-file", file, *flags) == 0
    assert "kept 4 of 6 visual tokens (2 prompt centres) from layer 3 on" in capsys.readouterr().err
    values = json.loads(record.read_text())
    assert values["K"] == len(values["keep_indices"]) == 4 and values["query"] == "describe the picture"
    assert ask(folder, "--image-file", file, "--mob-K", "0.5", "--max-pixels", 4 * 784, "--attn", "eager") == 0
    assert "kept 1 of 2" in capsys.readouterr().err
    assert ask(folders["qwen3_vl", "hub"], "--image-file", file, "--mob-method", "visual") == 0
    assert "kept 2 of 6 visual tokens (0 prompt centres) from layer 3" in capsys.readouterr().err
    assert ask(folders["qwen3_vl", "hub"], "--image-file", file, "--mob-off", "--dtype", "bfloat16") == 0
    assert "nothing was pruned" in capsys.readouterr().err


def test_a_model_called_mob_prunes(folders, file, tmp_path, capsys):
    shutil.copytree(folders["qwen2_vl", "hub"], tmp_path / "qwen2-vl-mob")
    assert ask(tmp_path / "qwen2-vl-mob", "--image-file", file) == 0
    assert "kept 2 of 6" in capsys.readouterr().err


def command(*arguments):
    paths = os.pathsep.join([str(ROOT), str(ROOT / "Qwen2-VL"), os.environ.get("PYTHONPATH", "")])
    run = [sys.executable, "-m", "Qwen2VL_MoB.chat", *map(str, arguments)]
    return subprocess.run(run, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths})


def test_as_a_module(folders, file):
    done = command("--model-path", folders["qwen2_vl", "hub"], *BASE, "--image-file", file)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() and "nothing was pruned" in done.stderr.splitlines()[-1]
    done = command("--model-path", folders["qwen2_vl", "hub"], *BASE, "--image-file", "/nowhere.png")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith("error: there is no picture")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--image-file", "/nowhere.png"], "there is no picture"),
        (["--video-file", "/nowhere.mp4"], "there is no video"),
        (["--mob-K", "0"], "keep at least one visual token"),
        (["--mob-method", "visul"], "did you mean 'visual'"),
        (["--mob-layer", "7"], "layers 1 to 4"),
        (["--mob-config", "/nowhere.json"], "--mob-config"),
        (["--device", "tpu"], "--device tpu is not there"),
        (["--attn", "flash_attention_2"], "pip install flash-attn"),
        (["--save-record", "x.json"], "nothing was dropped"),
        (["--min-pixels", "9000", "--max-pixels", "8000"], "is above max_pixels"),
    ],
)
def test_what_is_wrong_gives_one_line_and_exit_code_2(folders, file, flags, message, capsys):
    picture = [] if "--video-file" in flags or "--image-file" in flags else ["--image-file", str(file)]
    assert ask(folders["qwen2_vl", "hub"], *picture, *flags) == 2
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert err.startswith("error: ") and message in err


def test_wrong_folders(folders, tmp_path, capsys):
    for folder, message in (
        (tmp_path / "x", "is not a folder"),
        (tmp_path, "has no config.json"),
        ("no/such", "cannot be loaded"),
    ):
        assert ask(folder) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1 and message in err
    copy = tmp_path / "copy"
    shutil.copytree(folders["qwen2_vl", "hub"], copy)
    (copy / "config.json").write_text('{"model_type": "llava"}')
    assert ask(copy) == 2 and "no Qwen-VL" in capsys.readouterr().err
    shutil.copy(folders["qwen2_vl", "hub"] / "config.json", copy)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert ask(copy) == 2 and "cannot be loaded" in capsys.readouterr().err


def test_lost_weights_are_an_error(folders, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    shutil.copytree(folders["qwen2_vl", "hub"], tmp_path / "x")
    state = load_file(tmp_path / "x" / "model.safetensors")
    del state["visual.merger.ln_q.weight"]
    save_file(state, tmp_path / "x" / "model.safetensors", metadata={"format": "pt"})
    assert ask(tmp_path / "x") == 2
    assert "lack 1, such as model.visual.merger.ln_q.weight" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags", [["--temperature", "-1"], ["--top-p", "2"], ["--fps", "0"], ["--attn", "x"], ["--max-new-tokens", "0"]]
)
def test_values_out_of_range_exit_with_2(flags):
    with pytest.raises(SystemExit) as caught:
        chat.parse(["--model-path", "x", "--query", "y", *flags])
    assert caught.value.code == 2


def test_no_frames_in_a_file(folders, tmp_path, capsys):
    pytest.importorskip("av")
    (tmp_path / "x.mp4").write_bytes(b"")
    assert ask(folders["qwen2_vl", "hub"], "--video-file", tmp_path / "x.mp4") == 2
    assert "0 bytes" in capsys.readouterr().err
    Image.new("RGB", (20, 20)).save(tmp_path / "still.png")
    os.rename(tmp_path / "still.png", tmp_path / "still.mp4")
    assert ask(folders["qwen2_vl", "hub"], "--video-file", tmp_path / "still.mp4") == 2
    assert "give this single frame as a picture" in capsys.readouterr().err
