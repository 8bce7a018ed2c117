"""Prompts: Qwen's template, where pictures go, how many tokens they take, and the stock processors as the oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import BatchFeature
from transformers.processing_utils import ProcessorMixin, VideosKwargs
from transformers.video_utils import VideoMetadata

import qwen_checkpoints as checkpoints
from Qwen2VL_MoB import Turn
from Qwen2VL_MoB.prompts import IMAGE_PAD, VIDEO_PAD, encode, own_template, pad_batch, place, render

PROCESSORS = {
    "qwen2_vl": transformers.Qwen2VLProcessor,
    "qwen2_5_vl": transformers.Qwen2_5_VLProcessor,
    "qwen3_vl": transformers.Qwen3VLProcessor,
}


def messages(content, system="You are a helpful assistant."):
    start = [] if system is None else [{"role": "system", "content": system}]
    return [*start, {"role": "user", "content": content}]


def test_the_template_is_qwens():
    text = own_template(messages([{"type": "image"}, {"type": "text", "text": "Hi"}]))
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|><|image_pad|>"
        "<|vision_end|>Hi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert own_template(messages("Hi", None)).startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>")
    assert own_template(messages("Hi", None), "qwen3_vl").startswith("<|im_start|>user\nHi")


def test_a_bare_tokenizer_gives_the_same_prompt(tokenizer):
    bare = checkpoints.tokenizer()
    bare.chat_template = None
    text_only = checkpoints.tokenizer()  # the template of a text model, which knows no parts
    text_only.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    talk = messages([{"type": "video"}, {"type": "image"}, {"type": "text", "text": "and"}, {"type": "image"}])
    talk += [{"role": "assistant", "content": "one"}, {"role": "user", "content": "two"}]
    for system in (True, False):
        given = talk if system else talk[1:]
        assert (
            render(given, bare, "qwen2_vl")
            == render(given, tokenizer, "qwen2_vl")
            == render(given, text_only, "qwen2_vl")
        )


def test_where_pictures_go():
    image, video, text = {"type": "image"}, {"type": "video"}, lambda words: {"type": "text", "text": words}
    assert place("Q", 0, 0) == "Q" and place("what is <image> in html?", 0, 0) == "what is <image> in html?"
    assert place("Q", 2, 1) == [image, image, video, text("Q")]
    assert place("a <image> b <image>", 2, 0) == [text("a "), image, text(" b "), image]
    assert place("a <video> b", 1, 1) == [image, text("a "), video, text(" b")]
    assert place("<video><image>", 1, 1) == [video, image]
    assert place("", 1, 0) == [image] and place("a <video>", 1, 0) == [image, text("a <video>")]
    for query, counts in (("<image>", (2, 0)), ("<image> <image>", (1, 0)), ("<video><video>", (0, 1))):
        with pytest.raises(ValueError, match="write one for each, or none"):
            place(query, *counts)
    for query in (f"a {IMAGE_PAD}", f"{VIDEO_PAD}", "<|vision_start|>", "<|vision_end|>"):
        with pytest.raises(ValueError, match="write <image> or <video>"):
            place(query, 0, 0)
    with pytest.raises(ValueError, match="query is a list: give text"):
        place([{"type": "text"}], 0, 0)


def test_counts_and_first_index(qwen, pixels):
    """N = t * h * w / 4 placeholders, the first at index 15 after the default system message."""
    model, tokenizer = qwen
    processing = model.processing()
    prefix = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
    assert len(tokenizer(prefix)["input_ids"]) == 15  # as for Qwen's own tokenizer
    for size in ((56, 56), (300, 100), (640, 480), (90, 61)):
        turn = Turn("describe the picture", "", processing.pictures(Image.new("RGB", size, "red")))
        given = model.chat_inputs(tokenizer, [turn])
        ids = given["input_ids"][0]
        places = (ids == model.config.image_token_id).nonzero()[:, 0].tolist()
        t, h, w = given["image_grid_thw"][0].tolist()
        assert t == 1 and len(places) == h * w // 4 == len(given["pixel_values"]) // 4
        assert places == list(range(15, 15 + len(places)))
        assert tokenizer.decode(ids[places[-1] + 1]) == "<|vision_end|>"
        assert given["mm_token_type_ids"][0].nonzero()[:, 0].tolist() == places
    video = model.chat_inputs(tokenizer, [Turn("describe", "", (), processing.videos(pixels))])
    kinds = video["mm_token_type_ids"][0]
    assert int((kinds == 2).sum()) == int(video["video_grid_thw"].prod()) // 4 == int((kinds != 0).sum())
    assert video["video_grid_thw"][0, 0] == 2
    if model.config.model_type != "qwen3_vl":
        assert kinds.nonzero()[0] == 15


class VideoProcessor:
    """What the stock classes ask of a video processor: frames as we process them, and when they were shown."""

    merge_size = temporal_patch_size = 2
    model_input_names = ("pixel_values_videos", "video_grid_thw")
    valid_kwargs = VideosKwargs

    def __init__(self, processing):
        self.processing = processing

    def __call__(self, videos, **kwargs):
        made = [one for video in videos for one in self.processing.videos(video)]
        inputs = self.processing.collect([], made)
        inputs.pop("second_per_grid_ts", None)
        counts = [len(video) + len(video) % 2 for video in videos]
        data = [VideoMetadata(count, fps=2.0, frames_indices=list(range(count))) for count in counts]
        return BatchFeature(inputs | {"video_metadata": data})


def stock_processor(monkeypatch, model, tokenizer):
    monkeypatch.setattr(ProcessorMixin, "check_argument_for_proper_class", lambda *given: object)
    processing = model.processing()
    return PROCESSORS[model.config.model_type](
        image_processor=processing.image_processor,
        tokenizer=tokenizer,
        video_processor=VideoProcessor(processing),
        chat_template=tokenizer.chat_template,
    )


def test_the_stock_processor_gives_the_same_inputs(qwen, pixels, monkeypatch):
    """Two turns with pictures and videos in both, the marks of the first within the text."""
    model, tokenizer = qwen
    stock = stock_processor(monkeypatch, model, tokenizer)
    pictures = [
        Image.fromarray(one.transpose(1, 2, 0)).resize(size)
        for one, size in zip(pixels, ((90, 60), (30, 80), (99, 99)), strict=True)
    ]
    videos = [np.ascontiguousarray(pixels[:2]), np.ascontiguousarray(pixels[:, :, :40])]
    processing = model.processing()
    turns = [
        Turn(
            "see <image> and <image> then <video> ?",
            "a star",
            processing.pictures(pictures[:2]),
            processing.videos(videos[0]),
        ),
        Turn("and this?", "", processing.pictures(pictures[2]), processing.videos(videos[1])),
    ]
    ours = model.chat_inputs(tokenizer, turns, system="Be brief.")
    image, video = {"type": "image"}, {"type": "video"}
    said = [{"type": "text", "text": text} for text in ("see ", " and ", " then ", " ?", "and this?")]
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [said[0], image, said[1], image, said[2], video, said[3]]},
        {"role": "assistant", "content": "a star"},
        {"role": "user", "content": [image, video, said[4]]},
    ]
    text = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    theirs = stock(text=[text], images=pictures, videos=videos, return_tensors="pt")
    assert set(theirs) - {"video_metadata"} == set(ours)
    for key, value in ours.items():
        assert torch.equal(value, torch.as_tensor(theirs[key]).to(value.dtype)), key
    assert ("second_per_grid_ts" in ours) == (model.config.model_type == "qwen2_5_vl")


def test_timestamps_of_qwen3(loaded, clip):
    model, tokenizer = loaded["qwen3_vl"]
    turn = Turn("describe", "", (), model.processing().videos({"video": clip, "nframes": 4}))
    text = tokenizer.decode(model.chat_inputs(tokenizer, [turn])["input_ids"][0]).replace(VIDEO_PAD, "")
    # Frames 0, 6, 13, 19 at 5 a second.
    group = "<|vision_start|><|vision_end|>"
    assert f"<|vision_start|><0.6 seconds>{group}<3.2 seconds>{group}<|vision_end|>" in text


def test_intervals_of_qwen2_5(loaded, clip):
    model, tokenizer = loaded["qwen2_5_vl"]
    turn = Turn(
        "describe", "", (), model.processing().videos([{"video": clip, "nframes": 4}, {"video": clip, "fps": 5}])
    )
    given = model.chat_inputs(tokenizer, [turn])
    assert given["second_per_grid_ts"].tolist() == pytest.approx([2.0, 0.4])


def test_a_foreign_tokenizer_is_refused(loaded, tokenizer):
    model, _ = loaded["qwen2_vl"]
    other = checkpoints.tokenizer()
    other.add_tokens(["<x>"])
    model_ids = model.config.image_token_id
    try:
        model.config.image_token_id = model_ids + 1
        with pytest.raises(ValueError, match="load the tokenizer of this checkpoint"):
            encode(f"a {IMAGE_PAD}", other, model.config)
    finally:
        model.config.image_token_id = model_ids
    assert encode("a", tokenizer, model.config)["mm_token_type_ids"].sum() == 0


def test_a_batch_gives_the_answers_of_its_members(qwen, pixels):
    model, tokenizer = qwen
    processing = model.processing()
    turns = [
        Turn("describe the picture", "", processing.pictures(pixels[:2])),
        Turn("a red star", ""),
        Turn("and the video", "", processing.pictures(pixels[2]), processing.videos(pixels)),
    ]
    samples = [model.chat_inputs(tokenizer, [turn]) for turn in turns]
    model.config.MoB_config = {"K": 4}
    options = {"max_new_tokens": 4, "do_sample": False}
    batch = model.generate(**pad_batch(samples, tokenizer.pad_token_id), **options)
    for row, sample in zip(batch, samples, strict=True):
        alone = model.generate(**sample, **options)[0, sample["input_ids"].shape[1] :]
        assert row[-4:].tolist()[: len(alone)] == alone.tolist()
