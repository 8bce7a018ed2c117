"""The original repositories' way to call their models, on every family."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import checkpoints
import next_checkpoints as made
from llava.constants import IMAGE_TOKEN_INDEX
from llava_next.mm_utils import process_images, process_video
from llava_next.processing import prepare
from next_checkpoints import ONEVISION, VIDEO_LLAVA, load


class TestTheOriginalCall:
    """generate(ids, images=..., image_sizes=..., modalities=...)."""

    def ids(self, tokenizer, model, count):
        ids = tokenizer("describe " + "<image> " * count + "it", return_tensors="pt")["input_ids"]
        return ids.masked_fill(ids == model.config.image_token_id, IMAGE_TOKEN_INDEX)

    @pytest.mark.parametrize("kind", made.STOCK)
    def test_equals_prepared_inputs(self, folders, kind):
        tokenizer, model, processor, _ = load(folders[f"{kind}/stock"])
        picture = Image.effect_noise((90, 50), 90).convert("RGB")
        options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
        images = [process_images([picture], processor, model.config)[0], process_video(made.frames(), processor, 2)]
        new = model.generate(
            self.ids(tokenizer, model, 2),
            images=images,
            image_sizes=[picture.size, None],
            modalities=["image", "video"],
            **options,
        )
        given = prepare("describe <image> <video> it", tokenizer, processor, model.config, [picture], [images[1]])
        whole = model.generate(**given, **options)
        assert new.shape == (1, 4) and torch.equal(whole[:, -4:], new)

    def test_several_pictures_and_a_padded_batch(self, folders):
        tokenizer, model, processor, _ = load(folders[f"{ONEVISION}/stock"])
        pictures = [Image.effect_noise(size, 90).convert("RGB") for size in ((90, 50), (30, 80), (60, 60))]
        images = [process_images([one], processor, model.config)[0] for one in pictures]
        rows = [self.ids(tokenizer, model, count)[0] for count in (2, 1)]
        ids = torch.zeros(2, len(rows[0]), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = row, 1  # the original pads on the right
        sizes = [one.size for one in pictures]
        new = model.generate(
            ids, images=images, image_sizes=sizes, attention_mask=mask, max_new_tokens=2, do_sample=False
        )
        alone = model.generate(
            rows[1][None], images=images[2:], image_sizes=sizes[2:], max_new_tokens=2, do_sample=False
        )
        assert new.shape == (2, 2) and torch.equal(new[1:], alone)

    def test_text_only(self, folders):
        tokenizer, model, _, _ = load(folders[f"{VIDEO_LLAVA}/stock"])
        ids = tokenizer("describe it", return_tensors="pt")["input_ids"]
        assert model.generate(ids, images=None, max_new_tokens=2, min_new_tokens=2, do_sample=False).shape == (1, 2)

    @pytest.mark.parametrize(
        "count, more, message",
        [
            (2, {"image_sizes": [(3, 3)]}, "put one <image> into the prompt"),
            (0, {"image_sizes": [(3, 3)]}, "put one <image> into the prompt"),
            (1, {}, "image_sizes is needed"),
            (1, {"image_sizes": [(3, 3)], "modalities": ["sound"]}, "use image or video"),
        ],
    )
    def test_what_does_not_fit(self, folders, count, more, message):
        tokenizer, model, _, _ = load(folders[f"{ONEVISION}/stock"])
        with pytest.raises(ValueError, match=message):
            model.generate(self.ids(tokenizer, model, count), images=[torch.zeros(2, 3, 42, 42)], **more)

    def test_a_model_for_pictures_gets_no_video(self, tmp_path):
        source = checkpoints.next_model()
        tower = checkpoints.tower_folder(tmp_path / "tower", source)
        folder = checkpoints.original_folder(tmp_path / "llava-v1.6", tower, source, **checkpoints.NEXT)
        tokenizer, model, _, _ = load(folder)
        with pytest.raises(ValueError, match="'llava_next' takes pictures only"):
            model.generate(self.ids(tokenizer, model, 1), images=[torch.zeros(2, 3, 28, 28)], modalities=["video"])
