"""The overlay: right colours at the right pixels."""

from __future__ import annotations

import dataclasses

import pytest
from PIL import Image

from mob.picture import PROMPT_COLOUR, VISUAL_COLOUR, colour, overlay
from mob.record import RetainedPatches

SIDE = 448  # large enough to be drawn as it is; a cell of a 4 x 4 grid is 112 pixels wide
CELL = SIDE // 4
WHITE, GRID = (255, 255, 255), (4, 4)
DARK = round(0.38 * 255)

# A prompt centre at row 1, column 2; a visual centre at row 3, column 0; one more in a second picture.
RECORD = RetainedPatches(
    keep_indices=[6, 12, 16],
    prompt_center=[True, False, True],
    image=[0, 0, 1],
    row=[1, 3, 0],
    column=[2, 0, 0],
    N=32,
    K=3,
    K_p=2,
)


def white(width=SIDE, height=SIDE):
    return Image.new("RGB", (width, height), WHITE)


def drawn(image=None, **options):
    return overlay(image or white(), RECORD, **{"grid": GRID, "legend": False, **options})


def is_dim(pixel):
    return all(abs(channel - DARK) <= 1 for channel in pixel)


def test_kept_patches_are_bright_with_a_coloured_frame():
    picture = drawn()
    assert picture.size == (SIDE, SIDE) and picture.mode == "RGB"
    for row, column, frame in ((1, 2, PROMPT_COLOUR), (3, 0, VISUAL_COLOUR)):
        left, top = column * CELL, row * CELL
        right, bottom = left + CELL - 1, top + CELL - 1
        corners = {(x, y) for x in (left, right) for y in (top, bottom)}
        assert {picture.getpixel(corner) for corner in corners} == {frame}
        assert picture.getpixel((left + CELL // 2, top + CELL // 2)) == WHITE


def test_dropped_patches_are_dimmed_and_unframed():
    picture = drawn()
    kept = {(1, 2), (3, 0)}
    for row in range(4):
        for column in range(4):
            if (row, column) not in kept:
                box = (column * CELL, row * CELL, (column + 1) * CELL, (row + 1) * CELL)
                low, high = zip(*picture.crop(box).getextrema(), strict=True)
                assert is_dim(low) and is_dim(high)


def test_only_the_asked_picture_is_drawn():
    second = drawn(number=1)
    assert second.getpixel((0, 0)) == PROMPT_COLOUR
    assert is_dim(second.getpixel((2 * CELL, CELL)))
    assert len(drawn(number=2).getcolors()) == 1


def test_the_input_is_left_alone():
    image = white()
    drawn(image)
    assert image.getcolors() == [(SIDE * SIDE, WHITE)]


def test_the_model_saw_a_crop():
    """A wide picture whose middle square is the grid: the margins were never seen and stay dim."""
    picture = drawn(white(2 * SIDE, SIDE), box=(SIDE / 2, 0, 3 * SIDE / 2, SIDE))
    assert picture.getpixel((SIDE // 2 + 2 * CELL, CELL)) == PROMPT_COLOUR
    assert picture.getpixel((SIDE // 2, 3 * CELL)) == VISUAL_COLOUR
    assert is_dim(picture.getpixel((SIDE // 2 - 1, 3 * CELL + 5)))
    assert is_dim(picture.getpixel((2 * CELL, CELL)))


def test_the_model_saw_a_padded_square():
    """A wide picture in a square of twice its height: rows 0 and 3 of the grid are padding, and not drawn."""
    picture = drawn(white(2 * SIDE, SIDE), box=(0, -SIDE / 2, 2 * SIDE, 3 * SIDE / 2))
    assert picture.size == (2 * SIDE, SIDE)
    cell = SIDE // 2  # row 1 begins at the upper edge, column 2 in the middle
    assert picture.getpixel((2 * cell, 0)) == PROMPT_COLOUR
    assert picture.getpixel((3 * cell - 1, cell - 1)) == PROMPT_COLOUR
    assert {picture.getpixel((x, y)) for x in (0, 5, 100) for y in (0, cell, SIDE - 1)} == {picture.getpixel((9, 9))}
    assert is_dim(picture.getpixel((9, 9)))


def test_cells_are_cut_at_the_edge():
    picture = drawn(box=(0, -CELL / 2, SIDE, SIDE - CELL / 2))
    assert picture.getpixel((2 * CELL, CELL // 2)) == PROMPT_COLOUR
    assert is_dim(picture.getpixel((2 * CELL, CELL // 2 - 1)))
    lower = drawn(box=(0, CELL / 2, SIDE, SIDE + CELL / 2))
    assert lower.getpixel((CELL // 2, SIDE - 1)) == VISUAL_COLOUR


def test_tokens_without_a_place_are_not_drawn():
    nowhere = dataclasses.replace(RECORD, row=[-1] * 3, column=[-1] * 3)
    crop = (CELL, CELL, SIDE, SIDE)  # a cell -1 of this grid would lie inside the picture
    assert len(overlay(white(), nowhere, grid=GRID, box=crop, legend=False).getcolors()) == 1


def test_small_pictures_are_enlarged():
    picture = drawn(white(56, 28))
    assert picture.size == (2 * SIDE, SIDE)
    assert picture.getpixel((SIDE, CELL)) == PROMPT_COLOUR


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_any_kind_of_picture(mode):
    picture = drawn(white().convert(mode))
    assert picture.mode == "RGB" and picture.getpixel((2 * CELL, CELL)) == PROMPT_COLOUR


def test_legend_is_a_strip_below_with_both_colours():
    plain, explained = drawn(), drawn(legend=True)
    assert explained.width == plain.width and explained.height > plain.height
    assert explained.crop((0, 0, *plain.size)).tobytes() == plain.tobytes()
    strip = explained.crop((0, plain.height, *explained.size))
    used = {pixel for _, pixel in strip.getcolors(maxcolors=1 << 16)}
    assert {PROMPT_COLOUR, VISUAL_COLOUR} <= used


def test_legend_says_how_many():
    """Other counts, another strip."""
    strips = set()
    for K_p in range(3):
        record = dataclasses.replace(RECORD, prompt_center=[i < K_p for i in range(3)])
        picture = overlay(white(), record, grid=GRID)
        strips.add(picture.crop((0, SIDE, *picture.size)).tobytes())
    assert len(strips) == 3


def test_colours_differ():
    assert colour(True) == PROMPT_COLOUR != VISUAL_COLOUR == colour(False)
