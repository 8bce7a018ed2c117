"""Whatever writes a log: a page made of it and the folder of the pictures shows both, without other options."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

import checkpoints
import next_checkpoints as made
import qwen_checkpoints
from audit_logs import Page
from evaluating import lines, rows_of
from llava.eval import model_vqa_loader, model_vqa_mmbench, run_llava
from llava.mm_utils import seen_box
from llava.scenes.generator import sample
from llava_next import run as run_next
from llava_next.eval import video_qa
from mob.audit.__main__ import main
from mob.audit.writing import digest_of, save_picture
from Qwen2VL_MoB import chat

CPU = ["--temperature", "0", "--device", "cpu"]
ASK = ["--query", "what colour is the background?", *CPU]
WIDE = (160, 90)
SQUARED = [0.0, -0.38889, 1.0, 1.38889]  # the square around it, in shares of its sides
MIDDLE = [0.21875, 0.0, 0.78125, 1.0]
WHOLE = [0.0, 0.0, 1.0, 1.0]


@dataclass(frozen=True)
class Place:
    """A folder of pictures and videos, and checkpoints by name."""

    media: Path
    models: dict[str, Path]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("writers")
    (root / "media" / "a").mkdir(parents=True)
    sample(3).draw().save(root / "media" / "scene.png")
    Image.effect_noise(WIDE, 80).convert("RGB").save(root / "media" / "a" / "wide.png")
    made.write_video(root / "media" / "v_clip.mp4")
    source = checkpoints.model()
    tower, tokenizer = checkpoints.tower_folder(root / "tower", source), qwen_checkpoints.tokenizer()
    qwen = qwen_checkpoints.model("qwen2_vl", tokenizer)
    return Place(
        root / "media",
        {
            "llava": checkpoints.original_folder(root / "llava-v1.5", tower, source, image_aspect_ratio="pad"),
            "video": made.stock_folder(root / "video-llava", made.VIDEO_LLAVA, made.source_of(made.VIDEO_LLAVA, root)),
            "onevision": made.stock_folder(root / "onevision", made.ONEVISION, made.source_of(made.ONEVISION, root)),
            "qwen": qwen_checkpoints.hub_folder(root / "qwen", "qwen2_vl", qwen, tokenizer),
        },
    )


def audited(tmp_path, *logs, images):
    """The samples of the page: each has its pictures, and every kept token with a place is drawn."""
    target = tmp_path / "report.html"
    assert main([*map(str, logs), "--images", str(images), "--html", str(target), "--quiet"]) == 0
    page = Page(target.read_text())
    assert page.pictures and page.data["trouble"] == {} and page.data["about"]["without"] == 0
    for one in page.data["samples"]:
        assert one["question"] and one["pictures"] and all(shown["shots"] for shown in one["pictures"])
        for record in one["records"]:
            cells = base64.b64decode(record["cells"])
            assert sum(byte >> at & 3 > 0 for byte in cells for at in (0, 2, 4, 6)) == record["K"] - record["loose"]
            assert record["K"] > record["loose"] and record["mean"] > record["K"], "mean tokens need the layers"
    return page.data["samples"]


def boxes(samples):
    return [[shown.get("box") for shown in one["pictures"]] for one in samples]


def test_run_llava(place, tmp_path):
    record, wide = tmp_path / "r.json", place.media / "a" / "wide.png"
    kept = ["--mob-K", "9", "--save-record", str(record)]
    assert run_llava.main(["--image-file", str(place.media / "scene.png"), *ASK, *kept]) == 0
    assert boxes(audited(tmp_path, record, images=place.media)) == [[WHOLE]]
    words = ["--model-path", str(place.models["llava"]), "--max-new-tokens", "3", "--mob-K", "2", *kept[2:]]
    assert run_llava.main(["--image-file", f"{wide},{wide}", *ASK, *words]) == 0
    assert boxes(audited(tmp_path, record, images=place.media)) == [[SQUARED, SQUARED]]
    written = json.loads(record.read_text())
    assert written["pictures"][0]["image_file"] == str(wide) and written["layers"] == 4


@pytest.mark.parametrize(
    "model, media, expected",
    [
        ("onevision", ["--image-file", "a/wide.png"], [WHOLE]),
        ("onevision", ["--image-file", "a/wide.png,scene.png"], [SQUARED, WHOLE]),
        ("video", ["--image-file", "a/wide.png"], [MIDDLE]),
        ("video", ["--video-file", "v_clip.mp4", "--frames", "3"], [[0.125, 0.0, 0.875, 1.0]]),
    ],
)
def test_llava_next_run(place, tmp_path, monkeypatch, model, media, expected):
    monkeypatch.chdir(place.media)
    record = tmp_path / "r.json"
    words = ["--model-path", str(place.models[model]), "--max-new-tokens", "3", "--mob-K", "3"]
    assert run_next.main([*words, *media, *ASK, "--save-record", str(record)]) == 0
    assert boxes(audited(tmp_path, record, images=place.media)) == [expected]


def test_qwen_chat(place, tmp_path):
    record = tmp_path / "r.json"
    media = ["--image-file", str(place.media / "a" / "wide.png"), "--video-file", str(place.media / "v_clip.mp4")]
    words = ["--model-path", str(place.models["qwen"]), "--max-new-tokens", "3", "--mob-K", "0.5", "--mob-layer", "1"]
    assert chat.main([*words, *media, *ASK, "--save-record", str(record)]) == 0
    assert boxes(audited(tmp_path, record, images=place.media)) == [[WHOLE, WHOLE]]


def test_llava_eval(place, tmp_path):
    """Answers and records; without the questions, whose pictures the records name."""
    rows = [{"question_id": i, "image": name, "text": "what?"} for i, name in enumerate(("a/wide.png", "scene.png"))]
    words = ["--question-file", str(lines(tmp_path / "q.jsonl", rows)), "--image-folder", str(place.media), *CPU]
    words += ["--model-path", str(place.models["llava"]), "--max_new_tokens", "3", "--mob-K", "2", "--batch-size", "2"]
    answers, kept = tmp_path / "answers.jsonl", tmp_path / "kept.jsonl"
    assert model_vqa_loader.main([*words, "--answers-file", str(answers), "--log-retained-patches", str(kept)]) == 0
    assert boxes(audited(tmp_path, answers, kept, images=place.media)) == [[SQUARED], [WHOLE]]
    assert rows_of(kept)[0]["retained_patches"]["pictures"][0]["image_file"] == "a/wide.png"


def test_pictures_that_come_in_the_question_file(place, tmp_path):
    """MMBench's are base64 text: --save-pictures puts them where the audit finds them."""
    cell = base64.b64encode((place.media / "a" / "wide.png").read_bytes()).decode()
    table = tmp_path / "q.tsv"
    table.write_text(f"index\tquestion\thint\tA\tB\timage\n3\twhat?\t\tcat\tdog\t{cell}\n")
    answers, kept, saved = tmp_path / "answers.jsonl", tmp_path / "kept.jsonl", tmp_path / "saved"
    words = ["--question-file", str(table), "--answers-file", str(answers), "--log-retained-patches", str(kept), *CPU]
    words += ["--model-path", str(place.models["llava"]), "--max_new_tokens", "3", "--mob-K", "2"]
    assert model_vqa_mmbench.main([*words, "--all-rounds", "--save-pictures", str(saved)]) == 0
    assert len(list(saved.iterdir())) == 1
    assert boxes(audited(tmp_path, answers, kept, images=saved)) == [[SQUARED]] * 2
    assert model_vqa_mmbench.main([*words, "--no-resume", "--save-pictures", str(table)]) == 2


def test_video_questions(place, tmp_path):
    """The question leaves out ActivityNet's v_ and the ending; the log has the file's name."""
    (tmp_path / "q.json").write_text(json.dumps([{"question_id": 1, "video_name": "clip", "question": "what?"}]))
    answers, kept = tmp_path / "answers.json", tmp_path / "kept.jsonl"
    words = [
        "--model-path",
        str(place.models["video"]),
        "--video-dir",
        str(place.media),
        "--answers-file",
        str(answers),
    ]
    words += ["--gt-file-question", str(tmp_path / "q.json"), "--log-retained-patches", str(kept), "--frames", "2"]
    assert video_qa.main([*words, *CPU, "--max_new_tokens", "3", "--mob-K", "3"]) == 0
    (found,) = audited(tmp_path, answers, kept, images=place.media)
    assert len(found["pictures"][0]["shots"]) == 2 and found["pictures"][0]["name"] == "v_clip.mp4"
    assert boxes([found]) == [[[0.125, 0.0, 0.875, 1.0]]]


def test_two_pictures_of_one_name_are_told_apart_by_their_pixels(place, tmp_path):
    for folder, colour in (("x", "red"), ("y", "blue")):
        (tmp_path / "media" / folder).mkdir(parents=True)
        Image.new("RGB", (112, 112), colour).save(tmp_path / "media" / folder / "same.png")
    record = tmp_path / "r.json"
    words = ["--image-file", str(tmp_path / "media" / "y" / "same.png"), *ASK, "--mob-K", "9"]
    assert run_llava.main([*words, "--save-record", str(record)]) == 0
    moved = json.loads(record.read_text())
    moved["pictures"][0]["image_file"] = "same.png"  # as where the folder was moved since
    record.write_text(json.dumps(moved))
    audited(tmp_path, record, images=tmp_path / "media")
    (shown,) = Page((tmp_path / "report.html").read_text()).pictures
    red, _, blue = shown.convert("RGB").getpixel((50, 50))
    assert blue > 200 > 60 > red


def test_pictures_are_saved_once_and_whole(tmp_path):
    image = sample(4).draw()
    for _ in range(2):
        save_picture(image, tmp_path / "new" / "folder")
    (file,) = (tmp_path / "new" / "folder").iterdir()
    with Image.open(file) as again:
        assert again.tobytes() == image.convert("RGB").tobytes() and file.stem == digest_of(again)
    with pytest.raises(ValueError, match="name another folder"):
        save_picture(sample(5).draw(), file)


def test_the_box_is_where_the_model_looks():
    """The shares above, from the function whose own tests look at pixels."""

    class Pad:
        do_pad = True

    left, top, right, bottom = seen_box(WIDE, Pad(), object())
    assert [left / 160, round(top / 90, 5), right / 160, round(bottom / 90, 5)] == SQUARED
