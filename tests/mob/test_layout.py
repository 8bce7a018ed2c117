"""Token layouts: the published counts, grids from every source, and what is guessed where nothing is declared."""

from __future__ import annotations

import copy
import inspect
from types import SimpleNamespace

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.llava_next.modeling_llava_next import unpad_image

import zoo
from mob.layout import IMAGE, VIDEO, Cell, Picture, View, arrange, declared, grid_side, guess, tiles, unknown
from mob.noting import Noting
from tiny import llava_config

PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def config_16(**more):
    """LLaVA-1.6: 336 pixels in patches of 14. The original lists (width, height), transformers (height, width)."""
    vision = SimpleNamespace(image_size=336, patch_size=14)
    return SimpleNamespace(vision_config=vision, image_grid_pinpoints=[size[::-1] for size in PINPOINTS], **more)


ORIGINAL = config_16(mm_patch_merge_type="spatial_unpad")


@pytest.mark.parametrize(
    "width, height, rows, columns, total",
    [
        (336, 336, 24, 24, 1176),
        (640, 480, 36, 48, 2340),
        (480, 640, 48, 36, 2352),
        (500, 375, 36, 48, 2340),
        (640, 427, 32, 48, 2144),
        (1280, 720, 28, 48, 1948),
        (1008, 336, 24, 72, 2328),
        (336, 1008, 72, 24, 2376),
        (2000, 400, 14, 72, 1598),
        (448, 448, 48, 48, 2928),
        (672, 672, 48, 48, 2928),
        (1000, 1000, 48, 48, 2928),
    ],
)
def test_published_counts_of_llava_16(width, height, rows, columns, total):
    picture = tiles(ORIGINAL, height, width)
    assert picture.length == total
    assert picture.grids == [[24, 24], [rows, columns]]
    assert picture.without_newlines().length == 576 + rows * columns


def test_ties_between_resolutions():
    """The default list of llava-hf reads the original's (width, height) as (height, width): other tiles for some."""
    turned = SimpleNamespace(vision_config=ORIGINAL.vision_config, image_grid_pinpoints=PINPOINTS)
    assert tiles(ORIGINAL, 246, 50).grids[1] == [48, 10]
    assert tiles(turned, 246, 50).grids[1] == [24, 4] and tiles(turned, 246, 50).length == 696


@given(st.integers(1, 4000), st.integers(1, 4000))
@settings(max_examples=300, deadline=None)
def test_without_the_originals_rule_the_counts_are_those_of_transformers(width, height):
    config = config_16()
    rows, columns = (n * 24 for n in zoo_grid(config, height, width))
    stock = unpad_image(torch.empty(1, rows, columns, device="meta"), (height, width)).shape[1:]
    assert tiles(config, height, width).grids[1] == list(stock)


def zoo_grid(config, height, width):
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

    return get_anyres_image_grid_shape((height, width), config.image_grid_pinpoints, 336)


@pytest.mark.parametrize("width, height, ours, stock", [(704, 396, 26, 28), (656, 205, 14, 16), (1056, 220, 14, 16)])
def test_the_originals_rule_truncates(width, height, ours, stock):
    """27 rows exactly, by floats a hair less: the original cuts to 26, transformers, which rounds first, to 28."""
    assert tiles(ORIGINAL, height, width).grids[1][0] == ours
    assert tiles(config_16(), height, width).grids[1][0] == stock


def test_video_llava_and_qwen_counts():
    video = SimpleNamespace(model_type="video_llava", vision_config=SimpleNamespace(image_size=224, patch_size=14))
    (clip,) = guess(video, VIDEO, 8 * 257)
    assert clip.length == 2056 and clip.grids == [[16, 16]] * 8
    assert [cell for cell in clip.cells(0) if cell.row < 0] == [Cell(0, frame, -1, -1) for frame in range(8)]
    assert guess(video, IMAGE, 256)[0].grids == [[16, 16]]
    qwen = SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=2, patch_size=14))
    grids = {"image_grid_thw": torch.tensor([[1, 32, 46]]), "video_grid_thw": torch.tensor([[4, 18, 22]])}
    found = declared(qwen, grids)
    assert found[IMAGE][0].length == 32 * 46 // 4 and found[VIDEO][0].length == 4 * 18 * 22 // 4


def test_onevision_shrinks_large_grids():
    """729 tokens a tile; more than nine tiles are interpolated down."""
    vision = SimpleNamespace(image_size=384, patch_size=14)
    pinpoints = [[384 * i, 384 * j] for i in range(1, 7) for j in range(1, 7)]
    config = SimpleNamespace(vision_config=vision, image_grid_pinpoints=pinpoints, vision_aspect_ratio="anyres_max_9")
    assert tiles(config, 384, 384).grids == [[27, 27], [27, 27]]
    large = tiles(config, 2304, 2304)
    assert large.grids[1] == [81, 81] and large.length == 729 + 81 * 82
    assert tiles(config, 1152, 1152).grids[1] == [81, 81]
    several = {"image_sizes": torch.tensor([[384, 384], [500, 900]]), "batch_num_images": torch.tensor([2])}
    assert [one.length for one in declared(config, several)[IMAGE]] == [730, 730]


def grid(image, side=4):
    return [Cell(image, 0, row, column) for row in range(side) for column in range(side)]


def places(*rows, given=None, config=None):
    """Cells of each sample; rows of "." text, "i" image, "v" video."""
    kinds = [[".iv".index(letter) for letter in row] for row in rows]
    out = arrange(config or llava_config(), kinds, given or {})
    return [[cell for number, one in enumerate(row) for cell in one.cells(number)] for row in out]


def test_runs_of_whole_pictures_are_grids():
    one = "i" * 16
    assert places(f"..{one}..", f".{one}.{one}", one * 2 + "." + one, "...") == [
        grid(0),
        grid(0) + grid(1),
        grid(0) + grid(1) + grid(2),
        [],
    ]


def test_runs_of_other_lengths_have_no_places():
    assert places("." + "i" * 5 + "." + "i" * 16) == [[Cell(0, 0, -1, -1)] * 5 + grid(1)]
    assert places(".ii.i", config=SimpleNamespace(vision_config=None)) == [
        [Cell(0, 0, -1, -1)] * 2 + [Cell(1, 0, -1, -1)]
    ]


A, B = Picture((View(2, 3),)), Picture((View(1, 2, newline=True),))


def test_declared_pictures_are_dealt_out_in_order():
    found = arrange(None, [[0, *[1] * 9, 0], [1, 1, 1, 0]], {IMAGE: [A, B, B]})
    assert found == [[A, B], [B]]


def test_a_picture_may_be_interrupted_by_text():
    frames = Picture((View(1, 3), View(1, 3)))
    assert arrange(None, [[2, 2, 2, 0, 0, 2, 2, 2, 1, 1, 1]], {VIDEO: [frames], IMAGE: [B]}) == [[frames, B]]


def test_a_later_turn_may_declare_all_pictures_again():
    assert arrange(None, [[0, 1, 1, 1, 0]], {IMAGE: [A, B]}) == [[B]]


def test_what_does_not_fit_is_guessed():
    config = llava_config()
    assert arrange(config, [[1] * 16, [0, 1]], {IMAGE: [A]}) == [guess(config, IMAGE, 16), [unknown(1)]]


def test_models_that_shrink_their_grid():
    """InternVL and its like say how many tokens a picture has, and their tower's grid is larger."""
    vision = SimpleNamespace(image_size=[448, 448], patch_size=[14, 14])
    config = SimpleNamespace(vision_config=vision, image_seq_length=256)
    assert grid_side(config) == 32
    assert [one.grids for one in guess(config, IMAGE, 512)] == [[[16, 16]], [[16, 16]]]


def test_the_noting_encoder_looks_like_the_encoder():
    base = zoo.FAMILIES["qwen2_vl"].model().model
    noting = Noting(base, "get_image_features")
    assert list(inspect.signature(noting).parameters) == list(inspect.signature(base.get_image_features).parameters)
    base.__dict__["get_image_features"] = noting
    twin = copy.deepcopy(base)
    assert twin.__dict__["get_image_features"].base is twin  # a copy must not run the weights it was copied from


def test_cells_count_what_lengths_say():
    for picture in (A, B, Picture((View(2, 2, head=1), View(3, 1, newline=True)))):
        assert len(picture.cells(0)) == picture.length == len(set(picture.cells(0)))


@pytest.mark.parametrize("name", ["LlavaNextConfig", "LlavaOnevisionConfig", "VideoLlavaConfig", "Qwen2VLConfig"])
def test_default_configs_can_be_read(name):
    config = getattr(transformers, name)()
    assert guess(config, IMAGE, 7) and guess(config, VIDEO, 7)
