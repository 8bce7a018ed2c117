"""The command line: pictures and videos, flags, files, and one clear line for whatever is wrong."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import checkpoints
import next_checkpoints as made
from llava_next import run
from next_checkpoints import NEXT_VIDEO, ONEVISION, VIDEO_LLAVA

FAMILIES = (ONEVISION, NEXT_VIDEO, VIDEO_LLAVA)
QUERY = "what does it show?"
COMMON = ["--query", QUERY, "--temperature", "0", "--max-new-tokens", "3", "--device", "cpu"]


@pytest.fixture()
def picture(tmp_path):
    file = tmp_path / "picture.png"
    Image.effect_noise((90, 60), 90).convert("RGB").save(file)
    return str(file)


def ask(folder, *more):
    return run.main(["--model-path", str(folder), *COMMON, *more])


def failure(capsys):
    out, err = capsys.readouterr()
    lines = err.strip().splitlines()
    assert out == "" and lines[-1].startswith("error: ") and "Traceback" not in err
    return lines[-1]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_picture(folders, family, picture, capsys):
    assert ask(folders[f"{family}/stock"], "--image-file", picture, "--mob-K", "3", "--mob-layer", "1") == 0
    out, err = capsys.readouterr()
    assert out.endswith("\n") and "kept 3 of" in err


@pytest.mark.parametrize(
    "layout", [f"{family}/stock" for family in FAMILIES] + [f"{family}/bin" for family in FAMILIES]
)
def test_a_video(folders, layout, clip, capsys):
    more = ["--video-file", str(clip), "--frames", "3", "--mob-K", "0.5", "--num-beams", "2"]
    assert ask(folders[layout], *more) == 0
    expected = {ONEVISION: 13, NEXT_VIDEO: 12, VIDEO_LLAVA: 15}[layout.split("/")[0]]
    assert f"of {expected} visual tokens" in capsys.readouterr().err


def test_off_and_text_alone(folders, picture, capsys):
    assert ask(folders[f"{ONEVISION}/stock"], "--image-file", picture) == 0
    assert "MoB is off" in capsys.readouterr().err
    assert ask(folders[f"{ONEVISION}/stock"], "--mob-K", "5") == 0
    assert "MoB is off" in capsys.readouterr().err


def test_several_pictures_record_and_overlay(folders, picture, tmp_path, capsys):
    record, overlay = tmp_path / "r.json", tmp_path / "o.png"
    more = ["--mob-K", "6", "--save-record", str(record), "--overlay", str(overlay)]
    assert ask(folders[f"{ONEVISION}/stock"], "--image-file", f"{picture},{picture}", *more) == 0
    values = json.loads(record.read_text())
    assert (values["N"], values["K"], values["query"]) == (20, 6, QUERY)
    assert Image.open(overlay).size[0] >= 448 and (tmp_path / "o-1.png").exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_overlays(folders, family, picture, clip, tmp_path, capsys):
    """A sheet of the whole and the tiles of a picture, or of the frames of a video."""
    folder, file = folders[f"{family}/stock"], tmp_path / "o.png"
    assert ask(folder, "--image-file", picture, "--mob-K", "3", "--overlay", str(file)) == 0
    one = Image.open(file).width
    assert ask(folder, "--video-file", str(clip), "--frames", "3", "--mob-K", "3", "--overlay", str(file)) == 0
    assert Image.open(file).width > one


def test_newlines_may_be_kept(folders, picture, tmp_path, capsys):
    config = tmp_path / "c.json"
    more = ["--image-file", picture, "--mob-K", "2", "--mob-layer", "1", "--save-record", str(config)]
    assert ask(folders[f"{ONEVISION}/stock"], *more, "--mob-keep-newlines") == 0
    assert json.loads(config.read_text())["K"] == 2
    err = capsys.readouterr().err
    assert ask(folders[f"{ONEVISION}/stock"], *more) == 0
    assert capsys.readouterr().err != err


def test_compare(folders, clip, capsys):
    assert ask(folders[f"{VIDEO_LLAVA}/stock"], "--video-file", str(clip), "--mob-K", "5", "--mob-compare") == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 2 and "40 visual tokens" in lines[0] and " 5 visual tokens" in lines[1]


def test_the_word_mob_in_a_name_switches_pruning_on(folders, picture, tmp_path, capsys):
    (tmp_path / "video-llava-mob").symlink_to(folders[f"{VIDEO_LLAVA}/stock"])
    assert ask(tmp_path / "video-llava-mob", "--image-file", picture) == 0
    assert "kept 1 of 4" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["empty.mp4", "text.mp4", "none.mp4", "missing.mp4", "."])
def test_bad_videos(folders, tmp_path, name, capsys):
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("no video")
    made.write_video(tmp_path / "none.mp4", np.zeros((0, 30, 40, 3), np.uint8))
    assert ask(folders[f"{VIDEO_LLAVA}/stock"], "--video-file", str(tmp_path / name)) == 2
    assert name.split(".")[0] in failure(capsys)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--image-file", "/nowhere.png"], "there is no picture at"),
        (["--image-file", ""], "names no picture"),
        (["--image-file", "a.png", "--video-file", "b.mp4"], "give one of them"),
        (["--mob-compare"], "needs something to prune"),
        (["--model-base", "x"], "only LLaVA-1.5 and 1.6 have adapters"),
        (["--conv-mode", "nonsense"], "no conversation template"),
        (["--mob-K", "0"], "keep at least one"),
        (["--device", "tpu"], "device 'tpu'"),
    ],
)
def test_wrong_options(folders, flags, message, capsys):
    assert ask(folders[f"{VIDEO_LLAVA}/stock"], *flags) == 2
    assert message in failure(capsys)


def test_wrong_overlays(folders, picture, capsys):
    folder = folders[f"{ONEVISION}/stock"]
    assert ask(folder, "--image-file", picture, "--overlay", "o.png", "--mob-off") == 2
    assert "nothing was dropped" in capsys.readouterr().err
    assert ask(folder, "--image-file", picture, "--overlay", "/nowhere/o.png", "--mob-K", "3") == 2
    assert "cannot write --overlay" in capsys.readouterr().err


def test_a_model_that_is_none(tmp_path, capsys):
    assert ask(tmp_path) == 2
    assert "has no config.json" in failure(capsys)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert ask(tmp_path) == 2
    assert "this loader reads llava" in failure(capsys)


class TestLlava:
    def test_the_embedded_checkpoint_answers_about_pictures(self, picture, capsys):
        assert run.main([*COMMON, "--image-file", picture, "--mob-K", "20"]) == 0
        out, err = capsys.readouterr()
        assert out.strip() and "kept 20 of 196" in err

    def test_without_a_model_videos_name_one(self, clip, capsys):
        assert run.main([*COMMON, "--video-file", str(clip)]) == 2
        assert "--model-path llava-hf/llava-onevision-qwen2-0.5b-ov-hf" in failure(capsys)
        assert run.main(COMMON) == 2
        assert "--image-file" in failure(capsys)

    def test_a_llava_folder(self, tmp_path, picture, capsys):
        folder = checkpoints.stock_folder(tmp_path / "llava-hf", checkpoints.model())
        assert ask(folder, "--image-file", picture) == 0
        assert "MoB is off" in capsys.readouterr().err
        assert ask(folder, "--video-file", "x.mp4") == 2
        assert "for pictures" in failure(capsys)


def test_as_a_module(folders, picture):
    """In a process of its own; nothing but the answer on standard output."""
    command = [sys.executable, "-m", "llava_next.run", "--model-path", str(folders[f"{VIDEO_LLAVA}/stock"]), *COMMON]
    done = subprocess.run([*command, "--image-file", picture], capture_output=True, text=True, env=made.environment())
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    wrong = subprocess.run([*command, "--frames", "0"], capture_output=True, text=True, env=made.environment())
    assert wrong.returncode == 2 and "must be at least 1" in wrong.stderr
