"""process_vision_info: frames, sizes and times as qwen-vl-utils gives them, and one clear line for what is wrong."""

from __future__ import annotations

import importlib.util
import math
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mob.video import probe, read_frames
from Qwen2VL_MoB import process_vision_info, vision


def resize(frames, size, interpolation, antialias):
    """torchvision's functional.resize on uint8 tensors."""
    assert interpolation == "bicubic" and antialias
    scaled = torch.nn.functional.interpolate(frames.float(), size, mode="bicubic", antialias=True)
    return scaled.clamp(0, 255).round().to(torch.uint8)


class Reader:
    """decord.VideoReader, by PyAV."""

    def __init__(self, path):
        self.path, self.info = path, probe(path)

    def __len__(self):
        return self.info.frames

    def get_avg_fps(self):
        return self.info.fps

    def get_batch(self, indices):
        return SimpleNamespace(asnumpy=lambda: read_frames(self.path, indices))


@pytest.fixture(scope="module")
def published():
    """qwen_vl_utils.vision_process as published, with stand-ins for torchvision and decord."""
    home = importlib.util.find_spec("qwen_vl_utils")
    if home is None:
        pytest.skip("needs qwen-vl-utils")
    modules = {name: ModuleType(name) for name in ("torchvision", "torchvision.io", "torchvision.transforms", "decord")}
    modules["torchvision"].__version__ = "0.99"
    modules["torchvision"].io = modules["torchvision.io"]
    modules["torchvision"].transforms = modules["torchvision.transforms"]
    modules["torchvision.transforms"].InterpolationMode = SimpleNamespace(BICUBIC="bicubic")
    modules["torchvision.transforms"].functional = SimpleNamespace(resize=resize)
    modules["decord"].VideoReader = Reader
    modules["decord"].__spec__ = importlib.util.spec_from_loader("decord", None)
    with pytest.MonkeyPatch.context() as patch:
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        patch.setenv("FORCE_QWENVL_VIDEO_READER", "decord")
        file = home.submodule_search_locations[0] + "/vision_process.py"
        spec = importlib.util.spec_from_file_location("published_vision_process", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


def either(function, *args):
    """The result, or None for an error."""
    try:
        return function(*args)
    except (ValueError, AssertionError, ZeroDivisionError):
        return None


SIDES = st.one_of(st.integers(1, 300), st.integers(1, 20_000))


@settings(deadline=None, max_examples=400)
@given(
    SIDES, SIDES, st.sampled_from([28, 32, 56]), st.none() | st.integers(1, 10**6), st.none() | st.integers(1, 10**7)
)
def test_sizes_are_those_published(published, height, width, factor, least, most):
    theirs = either(published.smart_resize, height, width, factor, least, most)
    ours = either(vision.smart_resize, height, width, factor, least, most)
    if theirs is not None:  # a side of no pixels: they go on, and fail where the picture is resized
        theirs = tuple(max(side, factor) for side in theirs)
    assert ours == theirs
    if ours:
        assert all(side % factor == 0 for side in ours)


ELEMENTS = st.one_of(
    st.fixed_dictionaries({"nframes": st.floats(0.5, 900)}),
    st.fixed_dictionaries(
        {},
        optional={
            "fps": st.floats(0.01, 60),
            "min_frames": st.integers(1, 40),
            "max_frames": st.integers(1, 900),
        },
    ),
    st.just({"fps": 1, "nframes": 2}),
)


@settings(deadline=None, max_examples=400)
@given(ELEMENTS, st.integers(1, 5000), st.floats(0.1, 120))
def test_numbers_of_frames_are_those_published(published, element, total, fps):
    theirs, ours = (either(one.smart_nframes, element, total, fps) for one in (published, vision))
    assert ours == theirs


TIMES = st.fixed_dictionaries({}, optional={key: st.floats(-5, 100) for key in ("video_start", "video_end")})


@settings(deadline=None, max_examples=400)
@given(TIMES, st.integers(1, 500), st.floats(0.5, 60))
def test_ranges_are_those_published(published, element, total, fps):
    theirs = either(published.calculate_video_frame_range, element, total, fps)
    ours = either(vision.frame_range, element, total, fps)
    assert (None if ours is None else (*ours, ours[1] - ours[0] + 1)) == theirs


def talk(*parts):
    return [{"role": "system", "content": "x"}, {"role": "user", "content": [*parts, {"type": "text", "text": "hm"}]}]


CLIPS = [
    {},
    {"fps": 1.0},
    {"nframes": 6},
    {"fps": 5, "max_frames": 8},
    {"video_start": 1.0, "video_end": 3.1},
    {"max_pixels": 200 * 28 * 28},
    {"min_pixels": 50 * 28 * 28, "max_pixels": 60 * 28 * 28},
    {"total_pixels": 300 * 28 * 28, "min_pixels": 20 * 28 * 28},
    {"resized_height": 100, "resized_width": 200},
]


@pytest.mark.parametrize("patch", [14, 16])
@pytest.mark.parametrize("given", CLIPS, ids=str)
def test_videos_are_those_published(published, clip, given, patch):
    element = {"type": "video", "video": str(clip), **given}
    for more in ({}, {"return_video_kwargs": True}, {"return_video_kwargs": True, "return_video_metadata": True}):
        theirs = published.process_vision_info(talk(element), image_patch_size=patch, **more)
        ours = vision.own_vision_info(talk(element), image_patch_size=patch, **more)
        assert ours[0] is theirs[0] is None and ours[2:] == theirs[2:]
        for one, other in zip(ours[1], theirs[1], strict=True):
            if more.get("return_video_metadata"):
                (one, data), (other, expected) = one, other
                assert data | {"video_backend": "decord"} == expected
            assert one.dtype == other.dtype == torch.float32 and torch.equal(one, other)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(
    "given", [{}, {"sample_fps": 4.0}, {"sample_fps": 1.0, "raw_fps": 25.0}, {"max_pixels": 160 * 784}]
)
def test_lists_of_frames_are_those_published(published, pixels, given, count):
    frames = [Image.fromarray(one.transpose(1, 2, 0)) for one in pixels[:count]]
    element = {"video": frames, **given}
    theirs = published.process_vision_info(talk(element), True, True)
    ours = vision.own_vision_info(talk(element), True, True)
    assert ours[2] == theirs[2]
    (one, data), (other, expected) = ours[1][0], theirs[1][0]
    assert data == expected and len(one) == count + count % 2
    assert torch.equal(one, other)


def test_pictures_are_those_published(published, picture, tmp_path):
    path = tmp_path / "x.png"
    picture.save(path)
    clear = picture.copy()
    clear.putalpha(Image.linear_gradient("L").resize(picture.size))
    sources = [picture, str(path), f"file://{path}", picture.convert("L"), clear]
    budgets = [{}, {"max_pixels": 6 * 784}, {"min_pixels": 100 * 784}, {"resized_height": 60, "resized_width": 300}]
    elements = [{"type": "image", "image": one, **budget} for one in sources for budget in budgets]
    elements += [{"type": "image_url", "image_url": str(path)}]
    for patch in (14, 16):
        theirs = published.process_vision_info(talk(*elements), image_patch_size=patch)
        ours = vision.own_vision_info([talk(*elements)], image_patch_size=patch)
        assert theirs[1] is ours[1] is None and len(ours[0]) == len(elements)
        for one, other, element in zip(ours[0], theirs[0], elements, strict=True):
            assert one.size == other.size
            difference = np.abs(np.asarray(one, int) - np.asarray(other, int)).max()
            assert difference <= (1 if element.get("image") is clear else 0)  # transparency is rounded elsewhere


def test_qwen_vl_utils_answers_where_it_can_be_imported(monkeypatch, picture):
    assert process_vision_info(talk({"image": picture}))[0][0].size == (84, 56)
    seen = []
    other = ModuleType("qwen_vl_utils")
    other.process_vision_info = lambda conversations, **more: seen.append(more) or "theirs"
    monkeypatch.setitem(sys.modules, "qwen_vl_utils", other)
    assert process_vision_info([]) == "theirs"
    assert process_vision_info([], image_patch_size=16, return_video_kwargs=True) == "theirs"
    assert seen == [{}, {"image_patch_size": 16, "return_video_kwargs": True}]
    monkeypatch.setitem(sys.modules, "qwen_vl_utils", None)  # as where it is not installed
    assert process_vision_info(talk({"image": picture}))[0][0].size == (84, 56)


def test_text_alone():
    assert vision.own_vision_info([]) == (None, None)
    assert vision.own_vision_info([{"role": "user", "content": "hello"}], True) == (
        None, None, {"do_sample_frames": False, "fps": []},
    )  # fmt: skip


@pytest.mark.parametrize(
    "element, message",
    [
        ({"image": "/nowhere.png"}, "there is no picture"),
        ({"image": Image.new("RGB", (10_000, 20))}, "200 times as long as narrow, which Qwen refuses: crop it"),
        ({"image": Image.new("RGB", (28, 28)), "min_pixels": 10, "max_pixels": 5}, "below min_pixels"),
        ({"video": "/nowhere.mp4"}, "there is no video"),
        ({"video": "https://x.org/y.mp4"}, "download it"),
        ({"video": []}, "no frames"),
        ({"video": [Image.new("RGB", (9, 9))], "sample_fps": 0}, "above 0"),
        ({"video": 3}, "cannot be a int"),
        ({"type": "video"}, "names no source"),
        ({"type": "image"}, "names no source"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(element, message):
    with pytest.raises(ValueError, match=message) as caught:
        vision.own_vision_info(talk(element))
    assert "\n" not in str(caught.value)


def test_frames_must_agree_and_be_enough(clip):
    with pytest.raises(ValueError, match="different sizes"):
        vision.open_clip({"video": [Image.new("RGB", (9, 9)), Image.new("RGB", (9, 8))]})
    with pytest.raises(ValueError, match="ask for 2 to 20"):
        vision.open_clip({"video": str(clip), "nframes": 40})
    with pytest.raises(ValueError, match="keep one of them"):
        vision.open_clip({"video": str(clip), "nframes": 4, "fps": 1})
    with pytest.raises(ValueError, match="leaves no frames"):
        vision.open_clip({"video": str(clip), "video_start": 9})
    with pytest.raises(ValueError, match="give this single frame as a picture"):
        vision.smart_nframes({}, 1, 30.0)
    for shape in ((3, 8, 8), (2, 5, 8, 8), (2, 1, 8, 9)):
        with pytest.raises(ValueError, match="give .T, 3, H, W."):
            vision.open_clip({"video": np.zeros(shape, np.uint8)})


def test_a_dark_frame_keeps_the_scale_of_its_video():
    frames = np.zeros((2, 3, 8, 9), np.float32)
    frames[0], frames[1, :, 0] = 200, 1
    clip = vision.open_clip({"video": list(frames)})
    assert clip.frames[1].max() == 1 and math.isclose(clip.sample_fps, 2)
