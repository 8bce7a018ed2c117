"""Each way in which a call says how large its pictures are, and what runs of placeholders say where it does not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from mob.grids import described, shrunk
from mob.layout import IMAGE, VIDEO, Picture, View, arrange, grid_side


def config(kind: str = "some", vision: dict | None = None, **more):
    return SimpleNamespace(model_type=kind, vision_config=SimpleNamespace(**(vision or {})), **more)


def grid(rows: int, columns: int, **more) -> View:
    return View(rows, columns, **more)


def views(found: dict) -> dict:
    return {kind: [[View(*view) for view in picture] for picture in pictures] for kind, pictures in found.items()}


THW = torch.tensor([[1, 4, 8], [1, 2, 6]])
CLIP = torch.tensor([[4, 4, 8]])


@pytest.mark.parametrize(
    "settings, arguments, expected",
    [
        ({"vision": {"spatial_merge_size": 2}}, {"image_grid_thw": THW}, {IMAGE: [[grid(2, 4)], [grid(1, 3)]]}),
        ({"vision": {"merge_kernel_size": (2, 2)}}, {"image_grid_thw": THW[:1]}, {IMAGE: [[grid(2, 4)]]}),
        ({"vision": {"spatial_merge_size": 2}}, {"video_grid_thw": CLIP}, {VIDEO: [[grid(2, 4)] * 4]}),
        (
            {"vision": {"spatial_merge_size": 2, "temporal_merge_size": 2}},
            {"video_grid_thw": CLIP, "image_grid_thw": THW[1:]},
            {VIDEO: [[grid(2, 4)] * 2], IMAGE: [[grid(1, 3)]]},
        ),
        (
            {},
            {"image_grid_thw": THW, "image_merge_sizes": torch.tensor([1, 2])},
            {IMAGE: [[grid(4, 8)], [grid(1, 3)]]},
        ),
        (
            {"kind": "hunyuan_vl", "vision": {"spatial_merge_size": 2}},
            {"image_grid_thw": THW[1:]},
            {IMAGE: [[grid(1, 3, newline=True, head=1), grid(0, 0, head=1)]]},
        ),
        (
            {"vision": {"model_type": "pixtral", "patch_size": 4}, "spatial_merge_size": 2},
            {"image_sizes": [(24, 32)]},
            {IMAGE: [[grid(3, 4)]]},
        ),
        (
            {"kind": "emu3", "vq_config": SimpleNamespace(channel_multiplier=[1, 2, 2, 4])},
            {"image_sizes": torch.tensor([[32, 48]])},
            {IMAGE: [[grid(4, 6, newline=True)]]},
        ),
        (
            {},
            {"image_grids": torch.tensor([[3, 3, 4, 6], [3, 3, 0, 0]])},
            {IMAGE: [[grid(3, 3), grid(4, 6)], [grid(3, 3)]]},
        ),
        ({"vision": {"model_type": "clip"}}, {"image_sizes": [(24, 32)]}, {}),
        ({}, {"pixel_values": torch.zeros(1)}, {}),
    ],
    ids=["merged", "kernel", "video", "temporal", "own", "hunyuan", "pixtral", "emu3", "molmo2", "unused", "nothing"],
)
def test_what_a_call_says(settings, arguments, expected):
    assert views(described(config(**settings), arguments)) == expected


@pytest.mark.parametrize(
    "settings, side",
    [
        ({}, 8),
        ({"scale_factor": 2}, 4),
        ({"vision": {"scale_factor": 4}}, 2),
        ({"vision": {"hidden_stride": 2}}, 4),
        ({"downsample_ratio": 0.5}, 4),
        ({"downsample_rate": "3/8"}, 3),
    ],
)
def test_projectors_shrink_the_grid_of_the_tower(settings, side):
    vision = settings.pop("vision", {}) | {"image_size": [64, 64], "patch_size": [8, 8]}
    one = config(vision=vision, **settings)
    assert shrunk(one, 8) == side and grid_side(one) == side


def test_tiles_in_one_run_are_not_one_large_picture():
    """InternVL: 16 x 16 patches become 64 tokens; four tiles have as many tokens as patches."""
    one = config(vision={"image_size": 128, "patch_size": 8}, downsample_ratio=0.5, image_seq_length=64)
    assert arrange(one, [[IMAGE] * 256], {}) == [[Picture((grid(8, 8),))] * 4]


def test_frames_of_a_video_with_the_placeholder_of_pictures():
    """GLM-4V: a video is one picture of the budget, whatever is written between its frames."""
    video = Picture((grid(2, 3),) * 2)
    row = [0, *[IMAGE] * 6, 0, 0, *[IMAGE] * 6, 0]
    assert arrange(config(), [row], {VIDEO: [video]}) == [[video]]
    assert len(arrange(config(), [row], {})[0]) == 2


@pytest.mark.parametrize("between, pictures", [(1, 1), (2, 3)])
def test_equal_runs_with_one_token_between_are_rows(between, pictures):
    """Fuyu and Pixtral end rows of placeholders with a text token."""
    row = ([IMAGE] * 5 + [0] * between) * 3
    (found,) = arrange(config(), [row], {})
    assert len(found) == pictures
    assert pictures > 1 or found == [Picture((grid(3, 5),))]


def test_whole_pictures_with_one_token_between_are_not_rows():
    one = config(vision={"image_size": 32, "patch_size": 8})
    assert arrange(one, [([IMAGE] * 16 + [0]) * 2], {}) == [[Picture((grid(4, 4),))] * 2]
