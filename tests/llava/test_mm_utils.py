from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPImageProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from llava.mm_utils import (
    ImageError,
    KeywordsStoppingCriteria,
    divide_to_patches,
    expand2square,
    get_anyres_image_grid_shape,
    get_model_name_from_path,
    process_anyres_image,
    process_images,
    resize_and_pad_image,
    seen_box,
    select_best_resolution,
    tokenizer_image_token,
)
from mob import media

PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
RED, BLUE, BLACK = (255, 0, 0), (0, 0, 255), (0, 0, 0)
SIDE = 28


def two_halves(width: int, height: int) -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


# ---------------------------------------------------------------------------------------------------------------
# Resizers


@pytest.mark.parametrize(
    ("size", "best"),
    [
        ((336, 336), (336, 672)),  # a tie with 672 x 336: the first one listed
        ((640, 480), (672, 672)),
        ((480, 640), (672, 672)),
        ((500, 375), (672, 672)),
        ((640, 427), (672, 672)),
        ((1280, 720), (672, 672)),
        ((1008, 336), (1008, 336)),
        ((336, 1008), (336, 1008)),
        ((2000, 400), (1008, 336)),
        ((448, 448), (672, 672)),
        ((1000, 1000), (672, 672)),
        ((50, 246), (336, 672)),
    ],
)
def test_select_best_resolution(size: tuple, best: tuple) -> None:
    assert select_best_resolution(size, PINPOINTS) == best


def test_ties_go_to_the_first_resolution_listed() -> None:
    assert select_best_resolution((336, 336), [(672, 336), (336, 672)]) == (672, 336)
    assert select_best_resolution((336, 336), [(336, 672), (672, 336)]) == (336, 672)


def test_equal_detail_goes_to_the_least_waste() -> None:
    assert select_best_resolution((100, 100), [(1000, 1000), (100, 100), (500, 500)]) == (100, 100)


def test_no_resolutions_is_refused() -> None:
    with pytest.raises(ValueError, match="image_grid_pinpoints"):
        select_best_resolution((10, 10), [])


def test_resize_and_pad_keeps_aspect_and_centres_on_black() -> None:
    fitted = resize_and_pad_image(Image.new("RGB", (100, 50), RED), (40, 40))
    column = [fitted.getpixel((20, y)) for y in range(40)]
    assert fitted.size == (40, 40)
    assert column == [BLACK] * 10 + [RED] * 20 + [BLACK] * 10


def test_resize_and_pad_rounds_the_free_side_up() -> None:
    fitted = resize_and_pad_image(Image.new("RGB", (3, 100), RED), (50, 50))  # 1.5 columns become 2
    assert [fitted.getpixel((x, 25)) for x in range(23, 27)] == [BLACK, RED, RED, BLACK]


def test_resize_and_pad_hits_the_target_for_any_size() -> None:
    rng = random.Random(0)
    for _ in range(40):
        size = rng.randint(1, 200), rng.randint(1, 200)
        target = rng.randint(1, 90), rng.randint(1, 90)
        fitted = resize_and_pad_image(Image.new("RGB", size, RED), target)
        left, top, right, bottom = fitted.getbbox()
        assert fitted.size == target
        assert right - left == target[0] or bottom - top == target[1]  # one side is filled
        assert abs(left - (target[0] - right)) <= 1 and abs(top - (target[1] - bottom)) <= 1  # and it is centred


def test_patches_are_row_major_and_rebuild_the_picture() -> None:
    image = Image.radial_gradient("L").resize((12, 8))
    patches = divide_to_patches(image, 4)
    rebuilt = Image.new("L", (12, 8))
    for patch, corner in zip(patches, [(0, 0), (4, 0), (8, 0), (0, 4), (4, 4), (8, 4)], strict=True):
        rebuilt.paste(patch, corner)
    assert rebuilt.tobytes() == image.tobytes()


def test_patches_must_fill_the_picture() -> None:
    with pytest.raises(ValueError, match="4-pixel tiles do not fill 10 x 8.*multiples of 4"):
        divide_to_patches(Image.new("RGB", (10, 8)), 4)


@pytest.mark.parametrize(
    ("size", "tiles"),
    [((336, 336), (1, 2)), ((640, 480), (2, 2)), ((2000, 400), (3, 1)), ((400, 2000), (1, 3)), ((1, 1), (1, 2))],
)
@pytest.mark.parametrize("pinpoints", [PINPOINTS, str(PINPOINTS), [tuple(point) for point in PINPOINTS]])
def test_anyres_grid_shape(size: tuple, tiles: tuple, pinpoints: object) -> None:
    assert get_anyres_image_grid_shape(size, pinpoints, 336) == tiles


@pytest.mark.parametrize("text", ["", "[[336, 672", "336", "[336, 672]", "[['a', 'b']]", "__import__('os').getcwd()"])
def test_pinpoints_that_are_not_a_literal_list_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not like"):
        get_anyres_image_grid_shape((10, 10), text, 336)


def test_pinpoints_are_never_run(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError):
        get_anyres_image_grid_shape((10, 10), "[(open('trace', 'w'), 1)]", 336)
    assert not list(tmp_path.iterdir())


def test_expand2square() -> None:
    tall = expand2square(Image.new("RGB", (2, 6), RED), BLUE)
    assert [tall.getpixel((x, 0)) for x in range(6)] == [BLUE, BLUE, RED, RED, BLUE, BLUE]
    wide = expand2square(Image.new("RGB", (5, 2), RED), BLUE)
    assert [wide.getpixel((0, y)) for y in range(5)] == [BLUE, RED, RED, BLUE, BLUE]  # the odd row goes below
    square = Image.new("RGB", (3, 3))
    assert expand2square(square, BLUE) is square


def test_expand2square_refuses_what_would_fill_the_memory() -> None:
    with pytest.raises(ImageError, match="20000 x 1 picture.*crop or shrink"):
        expand2square(Image.new("RGB", (20000, 1)), BLACK)


# ---------------------------------------------------------------------------------------------------------------
# process_images


@pytest.fixture(scope="module")
def processor() -> CLIPImageProcessor:
    """A real processor that leaves colours alone, so that pixels can be read back from the tensors."""
    sizes = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    return CLIPImageProcessor(**sizes, do_normalize=False)


def config(aspect: str | None, pinpoints: object = None) -> SimpleNamespace:
    return SimpleNamespace(image_aspect_ratio=aspect, image_grid_pinpoints=pinpoints)


def colour(view: torch.Tensor, x: int, y: int) -> tuple[int, ...]:
    return tuple((view[:, y, x] * 255).round().int().tolist())


SMALL_PINPOINTS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]


def test_anyres_is_the_base_view_then_the_tiles(processor: CLIPImageProcessor) -> None:
    base, left, right = process_anyres_image(two_halves(2 * SIDE, SIDE), processor, SMALL_PINPOINTS)
    assert base.shape == (3, SIDE, SIDE)
    assert colour(base, 5, 14) == RED and colour(base, 22, 14) == BLUE  # squeezed, not cropped
    assert {colour(left, x, 14) for x in (0, 20, 27)} == {RED}
    assert {colour(right, x, 14) for x in (0, 7, 27)} == {BLUE}


def test_anyres_base_view_shows_the_edges_too(processor: CLIPImageProcessor) -> None:
    image = Image.new("RGB", (2 * SIDE, SIDE), BLUE)
    image.paste(RED, (0, 0, SIDE // 2, SIDE))  # a centre crop would lose this quarter
    assert colour(process_anyres_image(image, processor, SMALL_PINPOINTS)[0], 2, 14) == RED


def test_anyres_without_crop_size_uses_the_size(processor: CLIPImageProcessor) -> None:
    class Siglip:
        size, crop_size = {"height": SIDE, "width": SIDE}, None
        preprocess = processor.preprocess

    image = two_halves(2 * SIDE, SIDE)
    expected = process_anyres_image(image, processor, SMALL_PINPOINTS)
    assert torch.equal(process_anyres_image(image, Siglip(), SMALL_PINPOINTS), expected)


@pytest.mark.parametrize("aspect", ["anyres", "anyres_max_9"])
def test_process_images_anyres_stacks_equal_shapes(processor: CLIPImageProcessor, aspect: str) -> None:
    cfg = config(aspect, str(SMALL_PINPOINTS))
    wide, square = two_halves(2 * SIDE, SIDE), two_halves(2 * SIDE, 2 * SIDE)
    assert process_images([wide, wide], processor, cfg).shape == (2, 3, 3, SIDE, SIDE)
    mixed = process_images([wide, square], processor, cfg)
    assert isinstance(mixed, list)
    assert [views.shape[0] for views in mixed] == [3, 5]


def test_process_images_pad_squares_with_the_mean_colour(processor: CLIPImageProcessor) -> None:
    (view,) = process_images([Image.new("RGB", (SIDE, SIDE // 2), RED)], processor, config("pad"))
    assert [colour(view, 14, y) for y in (0, 6, 7, 20, 21, 27)] == [(122, 116, 104)] * 2 + [RED] * 2 + [
        (122, 116, 104)
    ] * 2


@pytest.mark.parametrize("cfg", [config(None), config("square"), SimpleNamespace()])
def test_process_images_otherwise_crops_like_the_processor(processor: CLIPImageProcessor, cfg: object) -> None:
    image = Image.new("RGB", (3 * SIDE, SIDE), RED)
    image.paste(BLUE, (SIDE, 0, 2 * SIDE, SIDE))
    batch = process_images([image, image], processor, cfg)
    assert batch.shape == (2, 3, SIDE, SIDE)
    assert {colour(batch[1], x, 14) for x in (0, 14, 27)} == {BLUE}  # the middle third is left


# ---------------------------------------------------------------------------------------------------------------
# Tokens and names

VOCAB = {"<unk>": 0, "<s>": 1, "</s>": 2, "▁look": 3, "▁at": 4, "▁": 5, "▁\nwhy": 6, "▁and": 7, "▁###": 8, "▁yes###": 9}


def make_tokenizer(with_bos: bool) -> PreTrainedTokenizerFast:
    """Words, each with a prefix mark, also at the start of a text: as Llama does, so joining chunks would show."""
    tokenizer = Tokenizer(models.WordLevel(VOCAB, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    if with_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"unk_token": "<unk>", "eos_token": "</s>"} | ({"bos_token": "<s>"} if with_bos else {})
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer(with_bos=True)


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("look at", [1, 3, 4]),
        ("look at <image>\nwhy", [1, 3, 4, 5, -200, 6]),
        ("<image>\nwhy", [1, -200, 6]),
        ("look at <image>", [1, 3, 4, 5, -200]),
        ("<image>", [1, -200]),
        ("<image><image>\nwhy", [1, -200, -200, 6]),
        ("look <image>and<image>\nwhy", [1, 3, 5, -200, 7, -200, 6]),
        ("", [1]),
    ],
)
def test_tokenizer_image_token(tokenizer: PreTrainedTokenizerFast, prompt: str, ids: list) -> None:
    assert tokenizer_image_token(prompt, tokenizer) == ids
    tensor = tokenizer_image_token(prompt, tokenizer, return_tensors="pt")
    assert tensor.dtype == torch.long and tensor.tolist() == ids


def test_tokenizer_image_token_keeps_a_bos_that_the_text_spells(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer_image_token("<image><s>", tokenizer) == [1, -200, 1]


def test_tokenizer_image_token_without_bos() -> None:
    assert tokenizer_image_token("look<image>\nwhy", make_tokenizer(with_bos=False)) == [3, -200, 6]


def test_tokenizer_image_token_takes_another_index(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer_image_token("<image>", tokenizer, image_token_index=-7) == [1, -7]


def test_tokenizer_image_token_refuses_other_tensors(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="'np'.*use 'pt'"):
        tokenizer_image_token("look", tokenizer, return_tensors="np")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("liuhaotian/llava-v1.6-vicuna-7b", "llava-v1.6-vicuna-7b"),
        ("/models/llava-v1.5-7b/", "llava-v1.5-7b"),
        ("runs/llava-lora/checkpoint-400", "llava-lora_checkpoint-400"),
        ("checkpoint-400", "checkpoint-400"),
    ],
)
def test_get_model_name_from_path(path: str, name: str) -> None:
    assert get_model_name_from_path(path) == name


def stops(tokenizer: PreTrainedTokenizerFast, keywords: list, prompt: list, *rows: list) -> bool:
    criteria = KeywordsStoppingCriteria(keywords, tokenizer, torch.tensor([prompt]))
    return bool(criteria(torch.tensor(rows), None))


def test_stops_at_the_ids_of_a_keyword(tokenizer: PreTrainedTokenizerFast) -> None:
    assert stops(tokenizer, ["###"], [1, 3], [1, 3, 4, 8])
    assert not stops(tokenizer, ["###"], [1, 3], [1, 3, 4, 7])


def test_stops_at_a_keyword_inside_the_decoded_text(tokenizer: PreTrainedTokenizerFast) -> None:
    assert stops(tokenizer, ["###"], [1, 3], [1, 3, 4, 9])


def test_a_keyword_of_the_prompt_does_not_stop(tokenizer: PreTrainedTokenizerFast) -> None:
    assert not stops(tokenizer, ["look at", "###"], [1, 9, 9], [1, 9, 9, 4])


def test_before_the_first_new_token_the_prompt_does_not_stop(tokenizer: PreTrainedTokenizerFast) -> None:
    assert not stops(tokenizer, ["###"], [1, 9, 4], [1, 9, 4])


def test_every_row_must_stop(tokenizer: PreTrainedTokenizerFast) -> None:
    assert not stops(tokenizer, ["###"], [1, 3], [1, 3, 8], [1, 3, 4])
    assert stops(tokenizer, ["###"], [1, 3], [1, 3, 8], [1, 3, 9])


def test_an_empty_keyword_never_stops(tokenizer: PreTrainedTokenizerFast) -> None:
    assert not stops(tokenizer, [""], [1, 3], [1, 3, 4])


def test_stops_when_only_new_tokens_are_given(tokenizer: PreTrainedTokenizerFast) -> None:
    criteria = KeywordsStoppingCriteria(["###"], tokenizer, torch.tensor([[1, 3, 4, 3]]))
    assert not criteria(torch.tensor([[3]]), None)
    assert criteria(torch.tensor([[3, 4, 7, 9]]), None)


def test_limits_are_the_documented_ones() -> None:
    assert media.MAX_IMAGE_PIXELS == 178_956_970
    assert media.MAX_DOWNLOAD_BYTES == 67_108_864


@pytest.mark.parametrize("size, short, crop", [((640, 480), 28, 28), ((480, 640), 32, 28), ((100, 100), 40, 20)])
def test_seen_box_is_where_the_centre_crop_looks(size, short, crop):
    """White inside the box and black outside gives a picture that is all white, but for the resampling at its edge."""
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": short},
        crop_size={"height": crop, "width": crop},
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
    )
    box = seen_box(size, processor, SimpleNamespace())
    picture = Image.new("RGB", size)
    picture.paste((255, 255, 255), tuple(round(side) for side in box))
    seen = process_images([picture], processor, SimpleNamespace())[0, 0]
    assert seen[2:-2, 2:-2].min() > 0.99
    outside = Image.new("RGB", size, "white")
    outside.paste((0, 0, 0), tuple(round(side) for side in box))
    assert process_images([outside], processor, SimpleNamespace())[0, 0, 2:-2, 2:-2].max() < 0.01


def test_a_very_long_picture_gives_the_same_middle():
    processor = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    strip = Image.effect_noise((2000, 40), 90).convert("RGB")
    whole = processor([strip], return_tensors="pt")["pixel_values"]
    assert torch.allclose(process_images([strip], processor, SimpleNamespace()), whole, atol=0.02)
