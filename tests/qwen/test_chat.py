"""model.chat: all kinds of pictures, several turns, streaming, pruning, and what cannot be asked."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

import qwen_checkpoints as checkpoints
from Qwen2VL_MoB import Turn

SHORT = {"max_new_tokens": 4, "do_sample": False}
QUERY = "describe the picture"


def prune(model, **values):
    model.config.MoB_config = values
    model.pruning.record = True
    model.pruning.clear()


def generated(model, tokenizer, turns, **more):
    """The answer to the last turn, by generate alone."""
    given = model.chat_inputs(tokenizer, turns, **more)
    out = model.generate(**given, **SHORT)[0, given["input_ids"].shape[1] :]
    return tokenizer.decode(out, skip_special_tokens=True).strip()


def test_pictures_change_the_answer(qwen, pixels):
    """Otherwise the comparisons below would say nothing."""
    model, tokenizer = qwen
    answers = {model.chat(tokenizer, QUERY, image=one, max_new_tokens=8, do_sample=False) for one in pixels}
    assert len(answers) == 3
    assert model.chat(tokenizer, QUERY, **SHORT) != model.chat(tokenizer, QUERY, image=pixels[0], **SHORT)


def test_all_spellings_of_a_picture_get_one_answer(qwen, pixels, picture, tmp_path):
    model, tokenizer = qwen
    picture.save(tmp_path / "x.png")
    ready = model.processing().collect(model.processing().pictures(picture), [])
    spellings = [
        picture,
        tmp_path / "x.png",
        str(tmp_path / "x.png"),
        f"file://{tmp_path / 'x.png'}",
        {"image": picture},
    ]
    spellings += [pixels[0], pixels[:1], pixels[0].transpose(1, 2, 0), pixels[0] / 255, [pixels[0]]]
    spellings += [
        torch.from_numpy(pixels[0].copy()),
        torch.from_numpy(pixels[:1] / 255.0),
        ready,
        tuple(ready.values()),
    ]
    answers = [model.chat(tokenizer, QUERY, image=one, **SHORT) for one in spellings]
    assert len(set(answers)) == 1 and answers[0]
    turn = Turn(QUERY, "", model.processing().pictures(picture))
    assert answers[0] == generated(model, tokenizer, [turn])


def test_all_spellings_of_a_video_get_one_answer(qwen, pixels):
    model, tokenizer = qwen
    frames = [Image.fromarray(one.transpose(1, 2, 0)) for one in pixels]
    ready = model.processing().collect([], model.processing().videos(frames))
    spellings = [frames, pixels, list(pixels), torch.from_numpy(pixels / 255.0), pixels[None], {"video": frames}, ready]
    assert len({model.chat(tokenizer, "describe", video=one, **SHORT) for one in spellings}) == 1


def test_a_video_file(qwen, clip):
    model, tokenizer = qwen
    answer = model.chat(tokenizer, "describe", video=clip, **SHORT)
    assert answer == model.chat(tokenizer, "describe", video={"video": str(clip), "fps": 2.0}, **SHORT)
    prune(model, K=0.25)
    model.chat(tokenizer, "describe", video=clip, image=Image.new("RGB", (60, 60)), **SHORT)
    (record,) = model.pruning.records
    assert round(record.N / 4) == record.K and max(record.image) == 1


def test_several_pictures_and_videos(qwen, pixels):
    model, tokenizer = qwen
    processing = model.processing()
    answer = model.chat(tokenizer, "is <image> in <video> or <image>?", image=list(pixels[:2]), video=pixels, **SHORT)
    turn = Turn("is <image> in <video> or <image>?", "", processing.pictures(pixels[:2]), processing.videos(pixels))
    assert answer == generated(model, tokenizer, [turn])


def test_a_second_turn_still_sees_the_first_picture(qwen, pixels):
    model, tokenizer = qwen
    processing = model.processing()
    first, history = model.chat(tokenizer, QUERY, image=pixels[0], history=[], max_pixels=4 * 784, **SHORT)
    second, longer = model.chat(tokenizer, "and this?", image=pixels[1], video=pixels, history=history, **SHORT)
    assert len(history) == 1 and len(longer) == 2
    assert longer[0] == (QUERY, first) and tuple(longer[1]) == ("and this?", second)
    small = processing.pictures(pixels[0], max_pixels=4 * 784)
    turns = [
        Turn(QUERY, first, small),
        Turn("and this?", "", processing.pictures(pixels[1]), processing.videos(pixels)),
    ]
    assert second == generated(model, tokenizer, turns)
    other = model.chat(tokenizer, "and this?", image=pixels[1], video=pixels, history=[Turn(QUERY, first)], **SHORT)
    assert other[0] != second  # it does see it
    third, _ = model.chat(tokenizer, "so?", history=longer, **SHORT)
    assert third == generated(
        model, tokenizer, [*turns[:1], Turn(*longer[1], *vars(longer[1]).values()), Turn("so?", "")]
    )


def test_plain_pairs_are_a_history(qwen):
    model, tokenizer = qwen
    pairs = json.loads(json.dumps([Turn("hello", "a star")]))
    assert pairs == [["hello", "a star"]]
    answer, history = model.chat(tokenizer, "and?", history=pairs, **SHORT)
    assert history == [("hello", "a star"), ("and?", answer)]
    assert answer == generated(model, tokenizer, [Turn("hello", "a star"), Turn("and?", "")])
    alone, history = model.chat(tokenizer, "and?", return_history=True, **SHORT)
    assert history == [("and?", alone)] and model.chat(tokenizer, "and?", **SHORT) == alone


def test_system_messages(qwen):
    model, tokenizer = qwen
    usual = model.chat_inputs(tokenizer, [Turn("hello", "")])["input_ids"]
    assert "You are a helpful assistant." in tokenizer.decode(usual[0])
    brief = tokenizer.decode(model.chat_inputs(tokenizer, [Turn("hello", "")], system="Be brief.")["input_ids"][0])
    assert brief.startswith("<|im_start|>system\nBe brief.<|im_end|>")
    assert torch.equal(model.chat_inputs(tokenizer, [Turn("hello", "")], system=None)["input_ids"], usual)


def test_streaming(qwen, picture, capsys):
    model, tokenizer = qwen
    answer = model.chat(tokenizer, QUERY, image=picture, stream=True, **SHORT)
    assert capsys.readouterr().out.strip() == answer == model.chat(tokenizer, QUERY, image=picture, **SHORT)

    class Counter(BaseStreamer):
        tokens = 0

        def put(self, value):
            self.tokens += value.numel() if value.ndim == 1 else 0

        def end(self):
            self.ended = True

    counter = Counter()
    model.chat(tokenizer, QUERY, image=picture, stream=counter, **SHORT)
    assert counter.tokens == 4 and counter.ended


def test_generation_settings(qwen, picture):
    model, tokenizer = qwen

    def length(**given):
        text = model.chat(tokenizer, QUERY, image=picture, min_new_tokens=1, **given)
        return text if isinstance(text, str) else None

    greedy = GenerationConfig(max_new_tokens=3, do_sample=False)
    assert length(generation_config=greedy) == length(max_new_tokens=3, do_sample=False)
    assert length(generation_config=greedy, max_new_tokens=5) == length(max_new_tokens=5, do_sample=False)
    assert length(num_beams=2, **SHORT) is not None
    assert length(return_dict_in_generate=True, output_scores=True, **SHORT) == length(**SHORT)
    first = tokenizer(length(**SHORT), add_special_tokens=False)["input_ids"]
    assert first
    with pytest.raises(ValueError, match="nonsense"):
        length(nonsense=3)


def test_an_answer_ends_at_im_end(loaded):
    from Qwen2VL_MoB.dialogue import _options

    _, tokenizer = loaded["qwen2_vl"]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert _options(tokenizer, GenerationConfig(), None, {}) == {
        "max_new_tokens": 512, "eos_token_id": [end], "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    assert _options(tokenizer, GenerationConfig(eos_token_id=3), 7, {})["eos_token_id"] == [3, end]
    assert _options(tokenizer, GenerationConfig(), 7, {"eos_token_id": 3})["eos_token_id"] == 3


@pytest.mark.parametrize("K", [3, 0.5])
def test_pruned_answers(qwen, pixels, K):
    """One picture: K of it. Several: K of all, split over them or not."""
    model, tokenizer = qwen
    prune(model, K=K)
    model.chat(tokenizer, QUERY, image=pixels[0], **SHORT)
    (one,) = model.pruning.records
    assert one.K == (K if K == 3 else round(one.N * K)) < one.N and len(one.keep_indices) == one.K
    counts = {}
    for split in (True, False):
        prune(model, K=0.5, per_picture=split)
        sizes = ((84, 56), (200, 200))
        model.chat(
            tokenizer, QUERY, image=[Image.fromarray(pixels[0].transpose(1, 2, 0)).resize(s) for s in sizes], **SHORT
        )
        (both,) = model.pruning.records
        assert round(both.N / 2) == both.K
        counts[split] = [both.image.count(number) for number in (0, 1)]
        assert sum(counts[split]) == both.K
    small = 6
    assert counts[True][0] == small // 2
    model.config.MoB_config = {"l_idx": 3}
    model.pruning.clear()
    model.chat(tokenizer, QUERY, image=pixels[0], **SHORT)
    assert not model.pruning.records


def test_keeping_everything_changes_nothing(qwen, pixels):
    model, tokenizer = qwen
    whole = model.chat(tokenizer, QUERY, image=list(pixels), video=pixels, max_new_tokens=8, do_sample=False)
    prune(model, K=10_000)
    assert model.chat(tokenizer, QUERY, image=list(pixels), video=pixels, max_new_tokens=8, do_sample=False) == whole


def test_text_alone_is_not_touched(qwen):
    model, tokenizer = qwen
    whole = model.chat(tokenizer, "hello", **SHORT)
    prune(model, K=2)
    assert model.chat(tokenizer, "hello", **SHORT) == whole
    assert all(record.N == 0 for record in model.pruning.records)


def test_strange_pictures(qwen, tmp_path):
    model, tokenizer = qwen
    frames = [Image.new("RGB", (30, 20), colour) for colour in ("red", "green")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    palette = Image.new("P", (30, 20))
    palette.info["transparency"] = 0
    palette.save(tmp_path / "p.png")
    red = model.chat(tokenizer, QUERY, image=frames[0], **SHORT)
    assert model.chat(tokenizer, QUERY, image=tmp_path / "x.gif", **SHORT) == red
    white = model.chat(tokenizer, QUERY, image=Image.new("RGB", (30, 20), "white"), **SHORT)
    assert model.chat(tokenizer, QUERY, image=tmp_path / "p.png", **SHORT) == white
    assert isinstance(model.chat(tokenizer, QUERY, image=Image.new("L", (1, 1)), **SHORT), str)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"query": ""}, "ask something"),
        ({"query": None}, "query is"),
        ({"image": []}, "image=.. is empty"),
        ({"video": []}, "no frames"),
        ({"image": np.full((3, 9, 8), np.nan)}, "NaN"),
        ({"image": np.zeros((3, 8, 3))}, "first or last"),
        ({"image": "/nowhere.png"}, "there is no picture"),
        ({"video": "/nowhere.mp4"}, "there is no video"),
        ({"image": Image.new("RGB", (10_000, 20))}, "200 times"),
        ({"query": "<image> <image>", "image": np.zeros((3, 9, 8))}, "write one for each"),
        ({"query": "<|image_pad|>"}, "write <image>"),
        ({"system": "<|video_pad|>"}, "system holds"),
        ({"history": [("a", "<|image_pad|>")]}, "history holds"),
        ({"history": ["ab"]}, "history holds 'ab'"),
        ({"history": [("a", "b", "c")]}, "history holds"),
        ({"processor": 3}, "processor=int"),
        ({"image": np.zeros((3, 9, 8)), "min_pixels": 9, "max_pixels": 8}, "min_pixels=9 is above"),
    ],
)
def test_what_cannot_be_asked_is_said_in_one_line(loaded, given, message):
    model, tokenizer = loaded["qwen2_vl"]
    with pytest.raises(ValueError, match=message) as caught:
        model.chat(tokenizer, **{"query": QUERY, **given}, **SHORT)
    assert "\n" not in str(caught.value)


def test_a_clean_import():
    """Nothing that is optional is imported along."""
    optional = ("torchvision", "av", "peft", "requests", "qwen_vl_utils", "decord", "llava")
    code = (
        f"import sys; sys.path[:0] = {[path for path in sys.path if path]!r}\n"
        "import Qwen2VL_MoB.modeling_qwen2_vl_self, Qwen2VL_MoB.vision\n"
        f"print([name for name in {optional} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_no_warnings(loaded, picture, pixels):
    model, tokenizer = loaded["qwen2_vl"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.chat(tokenizer, QUERY, image=picture, video=pixels, max_pixels=8 * 784, **SHORT)


def test_families_are_all_here():
    assert tuple(checkpoints.CLASSES) == checkpoints.FAMILIES
