"""The command line, on the embedded checkpoint: answers, flags, files, and one clear line for whatever is wrong."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from llava.eval import run_llava
from llava.eval.prompts import build_prompt, place_images
from llava.scenes.checkpoint import PATH
from llava.scenes.generator import sample
from llava.scenes.questions import ASK
from mob.flags import DEFAULT, count_or_share, resolve

ROOT = Path(__file__).parents[2]
QUESTION = "what number is on the sign?"


def scene_with_sign():
    return next(s for s in map(sample, range(20, 200)) if s.number and len(s.things) >= 4)


@pytest.fixture(scope="module")
def scene():
    return scene_with_sign()


@pytest.fixture()
def picture(tmp_path, scene):
    file = tmp_path / "scene.png"
    scene.draw().save(file)
    return str(file)


def ask(picture, *more, query=QUESTION):
    return run_llava.main(["--image-file", picture, "--query", query, "--temperature", "0", *more])


def test_the_embedded_checkpoint_answers(picture, scene, capsys):
    assert ask(picture) == 0
    out, err = capsys.readouterr()
    assert out.strip() == scene.number
    assert "kept 65 of 196 visual tokens" in err


def test_off_and_flags(picture, scene, capsys):
    assert ask(picture, "--mob-off") == 0
    assert "MoB is off" in capsys.readouterr().err
    assert ask(picture, "--mob-K", "40", "--mob-Kp-ratio", "0.5", "--mob-k-ratio", "0.125", "--mob-layer", "3") == 0
    assert "kept 40 of 196" in capsys.readouterr().err


def test_overlay_and_record(picture, tmp_path, capsys):
    overlay, record = tmp_path / "o.png", tmp_path / "r.json"
    assert ask(picture, "--mob-K", "22", "--overlay", str(overlay), "--save-record", str(record)) == 0
    assert min(Image.open(overlay).size) >= 112
    values = json.loads(record.read_text())
    assert values["K"] == len(values["keep_indices"]) == 22 and values["query"] == QUESTION
    rows = [index // 14 for index in values["keep_indices"]]
    assert values["row"] == rows


def test_compare_prints_both(picture, scene, capsys):
    assert ask(picture, "--mob-compare") == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert [line.split("  ")[0] for line in lines] == ["all tokens", "pruned"]
    assert scene.number in lines[0] and "196 visual tokens" in lines[0] and "65 visual tokens" in lines[1]


def test_as_a_module(picture, scene):
    """The command of the release README, in a process of its own."""
    command = [sys.executable, "-m", "llava.eval.run_llava", "--model-path", str(PATH), "--query", QUESTION]
    done = subprocess.run([*command, "--image-file", picture, "--temperature", "0"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == scene.number


def test_upstream_callers_give_an_ad_hoc_object(picture, scene):
    args = SimpleNamespace(
        model_path=str(PATH),
        model_base=None,
        model_name="llava",
        query=QUESTION,
        conv_mode=None,
        image_file=picture,
        sep=",",
        temperature=0,
        top_p=None,
        num_beams=2,
        max_new_tokens=8,
    )
    assert run_llava.eval_model(args).text == scene.number


def test_an_unknown_word_is_answered_with_unknown(picture, capsys):
    assert ask(picture, query="Is there a red zebra?") == 0
    assert capsys.readouterr().out.strip() == "unknown"


def test_any_question_about_any_picture_gets_some_answer(tmp_path, capsys):
    photo = tmp_path / "photo.jpg"
    Image.effect_noise((640, 427), 80).convert("RGB").save(photo)
    assert ask(str(photo), query="Where is the zebra's cappuccino, señor? 🦓") == 0
    assert capsys.readouterr().out.strip()
    assert ask(str(photo), query="") == 0


def bad_pictures(folder):
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("no picture")
    whole = folder / "whole.png"
    Image.effect_noise((64, 64), 50).save(whole)
    (folder / "cut.png").write_bytes(whole.read_bytes()[:900])
    chunk = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (folder / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header)
    return ["missing.png", "empty.png", "text.png", "cut.png", "huge.png", "."]


@pytest.mark.parametrize("number", range(6))
def test_bad_pictures_give_one_line_and_exit_code_2(tmp_path, number, capsys):
    name = bad_pictures(tmp_path)[number]
    assert ask(str(tmp_path / name)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--mob-K", "0"], "keep at least one visual token"),
        (["--mob-K", "1.5"], "between 0 and 1"),
        (["--mob-layer", "6"], "layers 1 to 5"),
        (["--mob-layer", "0"], "at least 1"),
        (["--mob-method", "visul"], "did you mean 'visual'"),
        (["--mob-schedule", "wek"], "did you mean 'weak'"),
        (["--mob-options", "{layers: 3}"], "--mob-options: Expecting property name"),
        (["--mob-options", "[3]"], "must hold one object"),
        (["--mob-options", '{"seed": 3}'], "rule 'mob' has no option 'seed'"),
        (["--conv-mode", "nonsense"], "no conversation template 'nonsense'"),
        (["--model-base", "x"], "cannot find the model 'x'"),
        (["--mob-off", "--overlay", "x.png"], "nothing was dropped"),
        (["--mob-off", "--mob-compare"], "needs something to compare"),
        (["--overlay", "/nowhere/o.png"], "cannot write --overlay"),
        (["--mob-config", "/nowhere.json"], "--mob-config"),
    ],
)
def test_wrong_options_give_one_line_and_exit_code_2(picture, flags, message, capsys):
    assert ask(picture, *flags) == 2
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert err.startswith("error: ") and message in err


def test_a_wrong_option_in_a_process_has_no_traceback(picture):
    command = [sys.executable, "-m", "llava.eval.run_llava", "--query", "x", "--image-file", "/nowhere.png"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr and done.stderr.startswith("error: ")


class TestResolve:
    def flags(self, **given):
        return SimpleNamespace(**given)

    def test_nothing_said(self):
        assert resolve(self.flags(), {}, default_on=False) == {}
        assert resolve(self.flags(), {}, default_on=True) == DEFAULT

    def test_options_of_a_rule(self):
        more = {"mob_K": 9, "mob_method": "pyramiddrop", "mob_options": '{"layers": [1, 3]}'}
        values = resolve(self.flags(**more), {"K": 5, "l_idx": 3}, default_on=False)
        assert values == {"K": 9, "method": "pyramiddrop", "options": {"layers": [1, 3]}}

    def test_config_json_then_file_then_flags(self, tmp_path):
        file = tmp_path / "mob.json"
        file.write_text('{"K": 30, "Kp_ratio": 0.25}')
        given = self.flags(mob_config=file, mob_Kp_ratio=0.5)
        assert resolve(given, {"K": 10, "l_idx": 3}, False) == {"K": 30, "Kp_ratio": 0.5, "l_idx": 3}

    def test_a_flag_without_a_budget_takes_the_default_one(self):
        assert resolve(self.flags(mob_method="visual"), {}, False) == {**DEFAULT, "method": "visual"}

    def test_off_wins(self):
        assert resolve(self.flags(mob_off=True, mob_K=3), {"K": 5}, True) == {}

    def test_bad_files(self, tmp_path):
        file = tmp_path / "mob.json"
        for text in ("[1]", "{", '{"keep": 3}'):
            file.write_text(text)
            with pytest.raises(ValueError):
                resolve(self.flags(mob_config=file), {}, False)

    def test_numbers(self):
        assert [count_or_share(t) for t in ("64", "0.25")] == [64, 0.25]


def test_where_pictures_go_in_a_prompt():
    assert place_images("Q", 2) == "<image>\n<image>\nQ"
    assert place_images("a <image-placeholder> b", 1) == "a <image> b"
    assert place_images("Q", 1, start_end=True) == "<im_start><image><im_end>\nQ"
    with pytest.raises(ValueError, match="make them equal"):
        place_images("a <image-placeholder> b", 2)


def test_conv_mode_overrides_the_chat_template():
    tokenizer = SimpleNamespace(chat_template=None)
    prompt = build_prompt("Q", 1, tokenizer, SimpleNamespace(), "llava-v1.5-7b", None)
    assert prompt.startswith("A chat between a curious human") and prompt.endswith("USER: <image>\nQ ASSISTANT:")
    prompt = build_prompt("Q", 1, tokenizer, SimpleNamespace(), "llava-v1.5-7b", "vicuna_v1")
    assert prompt.startswith("A chat between a curious user")


@pytest.mark.parametrize(
    "flags",
    [["--num_beams", "0"], ["--max_new_tokens", "0"], ["--temperature", "-1"], ["--top_p", "2"], ["--image-file", ""]],
)
def test_values_out_of_range_exit_with_2(picture, flags):
    command = [sys.executable, "-m", "llava.eval.run_llava", "--query", "x", "--image-file", picture, *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_damaged_weights_and_missing_devices_give_one_line(picture, tmp_path, capsys):
    for file in PATH.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert ask(picture, "--model-path", str(tmp_path), "--device", "tpu") == 2
    assert "device 'tpu' is not there" in capsys.readouterr().err
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert ask(picture, "--model-path", str(tmp_path)) == 2
    assert "cannot be loaded" in capsys.readouterr().err
    weights.unlink()
    assert ask(picture, "--model-path", str(tmp_path)) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_panorama_is_answered_and_painted(tmp_path, capsys):
    Image.new("RGB", (20_000, 2), "red").save(tmp_path / "wide.png")
    assert ask(str(tmp_path / "wide.png"), "--overlay", str(tmp_path / "o.png")) == 0
    assert max(Image.open(tmp_path / "o.png").size) <= 20_000
    assert Image.open(tmp_path / "o.png").height < 200


def test_only_the_word_mob_in_a_name_switches_pruning_on(picture, tmp_path, capsys):
    for name, on in (("mobile-llava", False), ("llava-v1.5-mob", True)):
        folder = tmp_path / name
        folder.mkdir()
        for file in PATH.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        assert ask(picture, "--model-path", str(folder)) == 0
        assert ("MoB is off" not in capsys.readouterr().err) == on


def test_the_bundled_picture_has_answers():
    """The quickstart's question, and those of the README's picture, make sense for the scene they are asked about."""
    sys.path.insert(0, str(ROOT / "scripts"))
    import make_images

    scene, rng = sample(make_images.SEED), np.random.default_rng(0)
    assert ASK["ocr"](scene, rng) and ASK["modeshape"](scene, rng)
    assert np.array_equal(np.asarray(Image.open(ROOT / "images" / "scene.png")), np.asarray(scene.draw()))
