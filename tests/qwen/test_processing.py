"""Patches and grids: against the stock processors where they can be imported, and against slow, obvious loops."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import qwen_checkpoints as checkpoints
from Qwen2VL_MoB.patches import CLIP, VideoSettings
from Qwen2VL_MoB.processing import Processing
from Qwen2VL_MoB.vision import smart_resize


@pytest.fixture(params=checkpoints.FAMILIES)
def processing(request, loaded):
    return loaded[request.param][0].processing()


def slow_patches(frames, patch, mean, std):
    """One patch after the other: float levels (T, 3, H, W) -> list of vectors, in the order of the tokens."""
    frames = [*frames, frames[-1]] if len(frames) % 2 else list(frames)
    _, height, width = frames[0].shape
    out = []
    for first in range(0, len(frames), 2):
        for top in range(0, height, 2 * patch):
            for left in range(0, width, 2 * patch):
                for row in (top, top + patch):
                    for column in (left, left + patch):
                        vector = []
                        for colour in range(3):
                            for frame in frames[first : first + 2]:
                                piece = frame[colour, row : row + patch, column : column + patch]
                                vector.append((piece / 255 - mean[colour]) / std[colour])
                        out.append(np.concatenate([piece.reshape(-1) for piece in vector]))
    return out


@pytest.mark.parametrize("patch", [14, 16])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_video_patches_by_hand(patch, count):
    frames = torch.randint(0, 256, (count, 3, 4 * patch, 6 * patch), dtype=torch.uint8)
    made = VideoSettings(patch=patch, min_pixels=1, max_pixels=10**6)
    pixels, grid = made.patches(frames)
    assert grid == (math.ceil(count / 2), 4, 6)
    expected = slow_patches(frames.double().numpy(), patch, made.mean, made.std)
    assert pixels.shape == (len(expected), 3 * 2 * patch**2) and pixels.dtype == torch.float32
    assert np.abs(pixels.numpy() - np.stack(expected)).max() < 2e-6


def test_two_equal_frames_are_one_picture(picture):
    """The patches of a video of equal frames are those of the stock picture processor."""
    picture = picture.resize((84, 56))
    stock = Qwen2VLImageProcessorPil(size={"shortest_edge": 784, "longest_edge": 10**6})
    expected = stock(images=[picture], return_tensors="pt")
    frames = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    pixels, grid = VideoSettings(min_pixels=784, max_pixels=10**6).patches(frames)
    assert [list(grid)] == expected["image_grid_thw"].tolist()
    assert torch.allclose(pixels, expected["pixel_values"], atol=1e-6)


@pytest.fixture(scope="module")
def qwen3():
    """The module of the stock video processor of Qwen3-VL, which can be imported without torchvision."""
    return pytest.importorskip("transformers.models.qwen3_vl.video_processing_qwen3_vl", exc_type=ImportError)


@settings(deadline=None, max_examples=300)
@given(
    st.integers(2, 99),
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.integers(1, 10**6),
    st.integers(10**4, 10**8),
)
def test_the_sizes_of_qwen3_are_the_stock_ones(qwen3, count, height, width, least, most):
    made = VideoSettings(patch=16, volume=True, min_pixels=least, max_pixels=most)
    try:
        expected = qwen3.smart_resize(count, height, width, 2, 32, least, most)
    except (ValueError, ZeroDivisionError):
        return  # refused by check_ratio before
    assert made.size(count, height, width) == expected


def test_the_patches_of_qwen3_are_the_stock_ones(qwen3):
    frames = torch.randint(0, 256, (5, 3, 64, 96), dtype=torch.uint8)
    made = VideoSettings(patch=16, volume=True, min_pixels=1, max_pixels=10**7, mean=(0.5,) * 3, std=(0.5,) * 3)
    pixels, grid = made.patches(frames)
    normal = (frames.float() - 127.5) / 127.5
    expected, *layout = qwen3.Qwen3VLVideoProcessor.patchify(None, normal[None], 16, 2, 2)
    assert grid == tuple(layout) and torch.allclose(pixels, expected[0], atol=1e-6)


@pytest.mark.parametrize("volume, most", [(False, 768 * 784), (True, 16 * 1024 * 40)])
def test_capped_budgets(qwen3, volume, most):
    """cap_pixels_per_frame, by the formula of the stock classes' documentation."""
    factor, tokens, least = (32, 768, 4096) if volume else (28, 4000, 3136)
    made = VideoSettings(
        patch=factor // 2, volume=volume, cap=True, max_tokens=tokens, min_pixels=least, max_pixels=most
    )
    for count in (2, 10, 40):
        if volume:
            share = max(min(tokens * factor**2, most // count), int(least * 1.05)) * count
            expected = qwen3.smart_resize(count, 480, 640, 2, factor, least, share)
        else:
            share = max(min(most, int(tokens * factor**2 * 0.9) * 2 // count), int(least * 1.05))
            expected = smart_resize(480, 640, factor, least, share)
        assert made.size(count, 480, 640) == expected


def test_frames_are_resized_as_torchvision_does_on_bytes():
    frames = torch.randint(0, 256, (2, 3, 60, 90), dtype=torch.uint8)
    made = VideoSettings(min_pixels=56 * 56, max_pixels=6 * 784, mean=(0.0,) * 3, std=(1 / 255,) * 3)
    pixels, grid = made.patches(frames)
    assert grid == (1, 4, 6)
    small = torch.nn.functional.interpolate(frames, (56, 84), mode="bicubic", antialias=True)
    assert small.dtype == torch.uint8
    again, _ = made.patches(small)
    assert torch.equal(pixels, again)
    by_pillow = np.stack(
        [np.asarray(Image.fromarray(f.permute(1, 2, 0).numpy()).resize((84, 56), Image.BICUBIC)) for f in frames]
    )
    assert np.abs(by_pillow.transpose(0, 3, 1, 2).astype(int) - small.numpy()).max() <= 1


def test_settings_come_from_the_checkpoint(processing, loaded, picture):
    family = next(name for name, (model, _) in loaded.items() if model.processing() is processing)
    patch = 16 if family == "qwen3_vl" else 14
    stock, video = processing.image_processor, processing.video
    assert (stock.patch_size, video.patch, processing.width) == (patch, patch, 6 * patch**2)
    assert stock.size["longest_edge"] == 16 * (2 * patch) ** 2
    assert video.max_pixels == (64 * 32 * 32 if family == "qwen3_vl" else 16 * 784)
    assert video.volume == (family == "qwen3_vl") and processing.timed == (family == "qwen2_5_vl")
    assert tuple(stock.image_mean) == video.mean == ((0.5,) * 3 if patch == 16 else CLIP["image_mean"])
    (made,) = processing.pictures(picture)
    direct = stock(images=[picture], return_tensors="pt")
    assert torch.equal(made.pixels, direct["pixel_values"]) and [list(made.grid)] == direct["image_grid_thw"].tolist()


def test_the_stock_processor_is_not_changed_by_reading_settings(processing):
    """transformers 5.17 writes min_pixels and max_pixels into the class's own size."""
    assert Qwen2VLImageProcessorPil.size == {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}
    assert Qwen2VLImageProcessorPil().size["longest_edge"] == 28 * 28 * 1280


@pytest.mark.parametrize(
    "written, size",
    [
        ({"min_pixels": 3136, "max_pixels": 12845056}, (3136, 12845056)),
        ({"size": {"shortest_edge": 4000, "longest_edge": 50_000}}, (4000, 50_000)),
        ({"size": {"min_pixels": 4000, "max_pixels": 50_000}}, (4000, 50_000)),
        (
            {"min_pixels": 5000, "max_pixels": None, "size": {"shortest_edge": 1, "longest_edge": 60_000}},
            (5000, 60_000),
        ),
        ({"max_pixels": 70_000}, (3136, 70_000)),
        ({}, (3136, 16384 * 784)),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_spellings_of_sizes(folders, tmp_path, written, size, nested):
    config = AutoConfig.from_pretrained(folders["qwen2_vl", "hub"])
    file = "processor_config.json" if nested else "preprocessor_config.json"
    (tmp_path / file).write_text(json.dumps({"image_processor": written} if nested else written))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if not written else "error")
        made = Processing.from_pretrained(tmp_path, config)
    assert (made.image_processor.size["shortest_edge"], made.image_processor.size["longest_edge"]) == size


def test_without_files(folders, tmp_path, picture):
    for family in checkpoints.FAMILIES:
        config = AutoConfig.from_pretrained(folders[family, "hub"])
        with pytest.warns(UserWarning, match="has no preprocessor_config.json: using Qwen's usual"):
            made = Processing.from_pretrained(tmp_path, config)
        assert made.image_processor.patch_size == config.vision_config.patch_size
        assert len(made.pictures(picture)[0].pixels)
        assert Processing.from_pretrained("", config).video == made.video
    (tmp_path / "preprocessor_config.json").write_text("[1]")
    with pytest.raises(ValueError, match="does not hold an object"):
        Processing.from_pretrained(tmp_path, config)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        Processing.from_pretrained(tmp_path, config)


def test_pixels_of_one_call(processing, picture):
    """min_pixels and max_pixels bound pictures and frames of one call, without warnings, and are forgotten after it."""
    factor = 2 * processing.image_processor.patch_size
    usual = processing.pictures(picture)[0].grid
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small = processing.pictures(picture, max_pixels=2 * factor**2)[0]
        large = processing.pictures(picture, min_pixels=40 * factor**2)[0]
        frames = processing.videos([picture] * 4, max_pixels=2 * factor**2)[0]
        own = processing.pictures({"image": picture, "max_pixels": 2 * factor**2})[0]
    assert processing.tokens(small) <= 2 and processing.tokens(large) >= 40
    assert frames.grid[0] == 2 and processing.tokens(frames) <= 4
    assert own.grid == small.grid and processing.pictures(picture)[0].grid == usual
    for wrong in (
        {"max_pixels": 0},
        {"min_pixels": "4"},
        {"min_pixels": 9000, "max_pixels": 8000},
        {"max_pixels": True},
    ):
        with pytest.raises(ValueError, match="pixels="):
            processing.pictures(picture, **wrong)


def test_a_processor_is_taken_as_it_is(loaded, picture):
    model, _ = loaded["qwen2_vl"]
    stock = Qwen2VLImageProcessorPil(size={"shortest_edge": 784, "longest_edge": 784 * 2})
    made = model.processing(processor=stock)
    assert made.image_processor is stock and made.video.max_pixels == 784 * 2
    assert model.processing(processor=made) is made and model.processing() is not made
    assert made.tokens(made.pictures(picture)[0]) <= 2
    with pytest.raises(ValueError, match="no settings of a Qwen image processor"):
        model.processing(processor=object())


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (200, 1), (3, 500), (640, 480)])
def test_pictures_of_any_size(processing, size):
    (made,) = processing.pictures(Image.new("RGB", size, "red"))
    assert len(made.pixels) == math.prod(made.grid) and processing.tokens(made) >= 1
    assert processing.videos([Image.new("RGB", size, "red")] * 2)[0].grid[0] == 1


def test_panoramas_are_refused_in_one_line(processing):
    for read in (processing.pictures, lambda one: processing.videos([one])):
        with pytest.raises(
            ValueError, match="10000 x 20 pixels is more than 200 times as long as narrow.*crop it"
        ) as caught:
            read(Image.new("RGB", (10_000, 20)))
        assert "\n" not in str(caught.value)


def test_ready_patches(processing, pixels):
    one, two = processing.pictures([pixels[0], pixels[1]])
    inputs = processing.collect([one, two], processing.videos(pixels))
    values, grids = inputs["pixel_values"], inputs["image_grid_thw"]
    for ready in ((values, grids), (values.numpy(), grids.numpy()), {"pixel_values": values, "image_grid_thw": grids}):
        again = processing.pictures(ready)
        assert [a.grid for a in again] == [one.grid, two.grid]
        assert torch.equal(again[0].pixels, one.pixels) and torch.equal(again[1].pixels, two.pixels)
    assert processing.videos(inputs)[0].grid == processing.videos(pixels)[0].grid
    assert processing.videos(inputs)[0].interval == processing.videos(pixels)[0].interval == 1
    assert processing.videos(inputs)[0].seconds == processing.videos(pixels)[0].seconds
    for wrong, message in (
        ((values[1:], grids), "this model takes"),
        ({"pixel_values": values[:, 1:], "image_grid_thw": grids}, "this model takes"),
        ({"pixel_values": values}, "give both"),
        ({"pixel_values": values * torch.nan, "image_grid_thw": grids}, "NaN"),
        (values, "processed patches as"),
        ({"picture": 1}, "give {'image'"),
    ):
        with pytest.raises(ValueError, match=message):
            processing.pictures(wrong)


def test_kinds_of_videos(processing, pixels, clip):
    frames = [Image.fromarray(one.transpose(1, 2, 0)) for one in pixels]
    (expected,) = processing.videos(frames)
    assert expected.grid[0] == 2 and expected.seconds == (0.25, 1.25) and expected.interval == 1
    for one in (pixels, torch.from_numpy(pixels.copy()), pixels.transpose(0, 2, 3, 1), list(pixels), tuple(frames)):
        for spelling in (one, {"video": one}, [{"video": one}], [one]):
            (made,) = processing.videos(spelling)
            assert made.grid == expected.grid and torch.equal(made.pixels, expected.pixels)
    assert len(processing.videos([frames, pixels])) == len(processing.videos(pixels[None].repeat(2, 0))) == 2
    (file,) = processing.videos(clip)
    assert file.grid[0] == 4 and file.interval == pytest.approx(1)  # 8 of 20 frames in 4 seconds
    assert [one.grid for one in processing.videos([str(clip), clip])] == [file.grid] * 2
    (two,) = processing.videos({"video": clip, "nframes": 2})
    assert two.grid[0] == 1 and two.seconds == (pytest.approx(19 / 5 / 2),)
    for wrong, message in (
        ([], "no frames"),
        ([[]], "no frames"),
        ([frames[0], frames], "both frames and videos"),
        ({"fps": 2}, "give {'video'"),
        (3, "cannot be a int"),
        (pixels[0], "give .T, 3, H, W."),
    ):
        with pytest.raises(ValueError, match=message):
            processing.videos(wrong)
