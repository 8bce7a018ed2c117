"""How arrays, tensors and files become pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from Qwen2VL_MoB.pictures import levels, to_picture, to_pictures


def same(picture, expected):
    assert np.array_equal(np.asarray(picture), expected)


def test_all_spellings_of_one_picture(pixels, tmp_path):
    whole = pixels[0]  # uint8 (3, H, W)
    expected = whole.transpose(1, 2, 0)
    Image.fromarray(expected).save(tmp_path / "x.png")
    spellings = [whole, expected, whole.astype(np.int64), whole.astype(np.float32), whole / 255.0]
    spellings += [torch.from_numpy(np.ascontiguousarray(one)) for one in spellings]
    spellings += [torch.from_numpy(whole / 255.0).half(), torch.from_numpy(whole / 255.0).float().requires_grad_()]
    spellings += [
        Image.fromarray(expected),
        str(tmp_path / "x.png"),
        tmp_path / "x.png",
        f"file://{tmp_path / 'x.png'}",
    ]
    for spelling in spellings:
        same(to_picture(spelling), expected)


def test_bfloat16_is_read_as_far_as_it_goes(pixels):
    values = torch.from_numpy(pixels[0] / 255.0).bfloat16()
    read = np.asarray(to_picture(values)).transpose(2, 0, 1)
    assert np.abs(read.astype(int) - pixels[0]).max() <= 1


def test_batches_and_lists(pixels):
    for source in (pixels, list(pixels), torch.from_numpy(pixels.copy()), [pixels[:2], pixels[2]], tuple(pixels)):
        read = to_pictures(source)
        assert len(read) == 3
        for picture, expected in zip(read, pixels, strict=True):
            same(picture, expected.transpose(1, 2, 0))


def test_grey_and_transparent():
    grey = np.arange(20, dtype=np.uint8).reshape(4, 5)
    for source in (grey, grey[None], grey[..., None], grey / 255):
        same(to_picture(source), np.repeat(grey[..., None], 3, axis=2))
    clear = np.zeros((6, 5, 4), np.uint8)
    clear[..., 0], clear[:2, :, 3] = 200, 255
    for source in (clear, clear.transpose(2, 0, 1), Image.fromarray(clear)):
        read = np.asarray(to_picture(source))
        assert (read[:2] == (200, 0, 0)).all() and (read[2:] == 255).all()
    palette = Image.fromarray(clear).convert("RGB").quantize(4)
    palette.info["transparency"] = palette.getpixel((0, 0))
    assert (np.asarray(to_picture(palette)) == 255).any()


def test_an_animation_shows_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "green")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert to_picture(tmp_path / "x.gif").getpixel((0, 0)) == (255, 0, 0)
    assert to_picture(Image.open(tmp_path / "x.gif")).getpixel((0, 0)) == (255, 0, 0)


@given(st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_channels_are_found_or_the_shape_is_refused(height, width, first):
    array = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    given = array.transpose(2, 0, 1) if first else array
    if given.shape[0] == given.shape[-1] == 3:
        with pytest.raises(ValueError, match="first or last"):
            to_picture(given)
    else:
        same(to_picture(given), array)


@pytest.mark.parametrize(
    "array, message",
    [
        (np.full((3, 4, 5), np.nan), "NaN or infinity"),
        (np.full((3, 4, 5), np.inf), "NaN or infinity"),
        (np.zeros((0, 4, 3), np.uint8), "empty"),
        (np.zeros((3, 0, 5)), "empty"),
        (np.full((3, 4, 5), -0.5), "negative values"),
        (torch.randn(3, 4, 5), "from before normalisation"),
        (np.full((3, 4, 5), 300), "up to 300"),
        (np.full((3, 4, 5), 256.5), "up to 256.5"),
        (np.full((3, 4, 5), 1.2), "too much for 0..1"),
        (np.zeros((2, 4, 5), np.uint8), "is not a picture"),
        (np.zeros((7, 2, 4, 5), np.uint8), "is not a picture"),
        (np.zeros((4, 5, 1), np.uint8)[:1], "first or last"),
        (np.zeros(5, np.uint8), "is not a picture"),
        (np.zeros((4, 5), bool), "array of bool"),
        (np.zeros((4, 5), complex), "array of complex"),
        (np.array(["a"]), "array of"),
    ],
)
def test_what_an_array_cannot_be(array, message):
    with pytest.raises(ValueError, match=message) as caught:
        to_pictures(array)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("lenient", [False, True])
def test_other_things(tmp_path, monkeypatch, lenient):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)  # as lmms-eval sets it, for everybody
    for source, message in (
        (3, "cannot be a int"),
        (b"x", "cannot be a bytes"),
        ([], "empty"),
        ("/nowhere.png", "there is no"),
    ):
        with pytest.raises(ValueError, match=message):
            to_pictures(source)
    (tmp_path / "cut.png").write_bytes(b"")
    picture = Image.effect_noise((64, 64), 50)
    picture.save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:400])
    with pytest.raises(ValueError, match="damaged"):
        to_picture(Image.open(tmp_path / "cut.png"))


def test_rounding_errors_are_clipped():
    same(to_picture(np.full((4, 4, 3), 1.0005)), np.full((4, 4, 3), 255, np.uint8))
    assert levels(np.array([[-0.0005, 0.5]])).tolist() == [[0, 128]]
    assert levels(np.array([[0.0, 2.0]])).tolist() == [[0, 2]]
