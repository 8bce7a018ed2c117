"""Visual tokens, prompt tokens and grid cells are found in every arrangement of text and pictures."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from mob.layout import IMAGE as PICTURE
from mob.layout import VIDEO
from mob.spans import find_kinds, find_real, find_spans, visual_token_ids
from tiny import IMAGE, NONE, ONE, TWO, batch, llava, llava_config


def spans(*rows, first_pass=True):
    """Spans of rows written as strings: "." padding, "v" visual, "a" text to be predicted, "t" any other text."""
    letters = [list(row) for row in rows]

    def where(wanted):
        return torch.tensor([[letter in wanted for letter in row] for row in letters])

    return find_spans(where("v").to(torch.uint8), where("vat"), where("a"), first_pass)


def places(mask):
    return [row.nonzero()[:, 0].tolist() for row in mask]


@pytest.mark.parametrize(
    "row, prompt",
    [
        pytest.param("ttvvvtt", [5, 6], id="after-the-picture"),
        pytest.param("tvvtvvt", [6], id="after-the-last-picture"),
        pytest.param("tttvv", [1, 2], id="before-only"),
        pytest.param("tvv", [], id="no-text"),
        pytest.param("tttt", [0, 1, 2, 3], id="text-only"),
        pytest.param("ttvvttaa", [4, 5], id="answer-is-not-seen"),
        pytest.param("ttvvttaattaa", [4, 5, 8, 9], id="answers-between-questions"),
        pytest.param("tttvvaa", [1, 2], id="answer-alone-after-the-picture"),
        pytest.param("...ttvvtt", [7, 8], id="left-padding"),
        pytest.param("ttvvtt...", [4, 5], id="right-padding"),
        pytest.param("...tttvv", [4, 5], id="before-only-with-left-padding"),
        pytest.param("tttvv...", [1, 2], id="before-only-with-right-padding"),
    ],
)
def test_prompt(row, prompt):
    assert places(spans(row).prompt) == [prompt]


def test_later_passes_have_no_first_token_to_leave_out():
    assert places(spans("tttvv", first_pass=False).prompt) == [[0, 1, 2]]


def test_counts_of_a_batch():
    found = spans("..tvvtt", "tvvvvtt", "...tttt", "tvvtta.")
    assert found.real_counts == [5, 7, 4, 6]
    assert found.visual_counts == [2, 4, 0, 2]
    assert found.prompt_counts == [2, 2, 4, 2]
    assert found.real.sum(1).tolist() == found.real_counts


def test_placeholders_under_padding_do_not_count():
    """A pad token may share its id with the placeholder."""
    visual = torch.tensor([[True, True, False, True, True, False]])
    real = torch.tensor([[False, False, True, True, True, True]])
    found = find_spans(visual.to(torch.uint8), real, None, True)
    assert places(found.visual) == [[3, 4]] and places(found.prompt) == [[5]]


@pytest.mark.parametrize("pad", ["left", "right"])
def test_placeholders_by_id_and_by_embedding(pad):
    model = llava()
    ids = batch(ONE, TWO, NONE, pad=pad)["input_ids"]
    embed = model.get_input_embeddings()
    by_id = find_kinds(model.config, ids, None, embed)
    assert torch.equal(by_id, (ids == IMAGE).to(torch.uint8))
    assert torch.equal(find_kinds(model.config, None, embed(ids), embed), by_id)


def test_token_ids_of_pictures_and_videos():
    assert visual_token_ids(llava_config()) == {IMAGE: PICTURE}
    config = SimpleNamespace(image_token_id=7, video_token_id=8, video_token_index=None)
    assert visual_token_ids(config) == {7: PICTURE, 8: VIDEO}
    assert visual_token_ids(SimpleNamespace()) == {}


def test_without_a_mask_everything_is_real():
    assert find_real(None, torch.zeros(2, 3, dtype=torch.bool), 0).all()


@pytest.mark.parametrize("past", [0, 2])
@pytest.mark.parametrize("kind", ["2d", "4d-bool", "4d-float32", "4d-float16", "4d-static"])
@pytest.mark.parametrize("row", [[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
def test_padding_by_every_kind_of_mask(kind, past, row):
    """A 4D mask says per query what it may read; a static cache adds columns that nothing was written to yet."""
    mask = torch.tensor([row, [1] * 6])
    length = 6 - past
    if kind != "2d":
        causal = torch.arange(6)[None, :] <= torch.arange(past, 6)[:, None]
        allowed = mask.bool()[:, None, None, :] & causal
        if kind == "4d-static":
            allowed = torch.cat([allowed, torch.zeros(2, 1, length, 3, dtype=torch.bool)], 3)
        if kind.startswith("4d-float"):
            dtype = getattr(torch, kind[3:])
            allowed = torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
    real = find_real(mask if kind == "2d" else allowed, torch.zeros(2, length, dtype=torch.bool), past)
    assert real.tolist() == [[bool(v) for v in row[past:]], [True] * length]


def test_infinity_blocks_too():
    mask = torch.tensor([float("-inf"), 0.0, 0.0])[None, None, None].expand(1, 1, 3, 3)
    assert find_real(mask, torch.zeros(1, 3, dtype=torch.bool), 0).tolist() == [[False, True, True]]


def test_other_masks_are_errors():
    with pytest.raises(ValueError, match="give a .batch, length. mask"):
        find_real(torch.ones(1, 3, 3), torch.zeros(1, 3, dtype=torch.bool), 0)
