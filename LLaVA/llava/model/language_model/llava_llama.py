"""LLaVA-1.5 with MoB: the stock class, plus the calling convention of the original repository."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor

from llava.constants import IMAGE_TOKEN_INDEX
from mob import MoBMixin


class LlavaForConditionalGeneration(MoBMixin, transformers.LlavaForConditionalGeneration):
    """Stock LLaVA that honours ``config.MoB_config``; ``generate`` also takes ``images=`` (``forward`` does not).

    Called the original way, with ``images`` (and -200 or one ``<image>`` token for each of them in the ids),
    ``generate`` returns the new tokens only, as the original does. Called the transformers way, with
    ``pixel_values``, it returns prompt and new tokens, as transformers does.
    """

    def generate(self, inputs: Tensor | None = None, images: Any = False, image_sizes: Any = None, **kwargs: Any):
        """``images``: (n, 3, H, W) or a list of such, or None for text only; ``image_sizes`` is not needed here."""
        if inputs is None:
            inputs = kwargs.pop("input_ids", None)
        if images is False:
            return super().generate(inputs, **kwargs)
        ids, mask, pixels = self.expand_images(inputs, kwargs.pop("attention_mask", None), images)
        if pixels is not None:
            kwargs["pixel_values"] = pixels
        out = super().generate(ids, attention_mask=mask, **kwargs)
        if isinstance(out, Tensor):
            return out[:, ids.shape[1] :]
        out.sequences = out.sequences[:, ids.shape[1] :]
        return out

    def expand_images(self, ids: Tensor, mask: Tensor | None, images: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        """Give every image of the ids its placeholders: (ids, attention_mask, pixel_values), padded on the left.

        Args:
            ids: (B, T), -200 or the ``<image>`` token once for each picture.
            mask: (B, T) or None when nothing is padded.
            images: (n, 3, H, W), a list of (3, H, W) or (1, 3, H, W), or None.

        Raises:
            ValueError: the ids name another number of images than were given.
        """
        token, length = self.config.image_token_index, tokens_per_image(self.config)
        pixels = _stack(images, self.device, self.dtype)
        here = (ids == IMAGE_TOKEN_INDEX) | (ids == token)
        given = 0 if pixels is None else len(pixels)
        if int(here.sum()) != given:
            raise ValueError(
                f"the prompt names {int(here.sum())} image(s) and {given} were given: put one <image> into the prompt "
                "for each picture"
            )
        mask = torch.ones_like(ids) if mask is None else mask
        rows = []
        for row, real, image in zip(ids, mask.bool(), here, strict=True):
            row, image = row[real], image[real]
            rows.append(row.masked_fill(image, token).repeat_interleave(torch.where(image, length, 1)))
        width = max(map(len, rows))
        pad = self.config.text_config.pad_token_id or 0
        ids = torch.stack([torch.nn.functional.pad(row, (width - len(row), 0), value=pad) for row in rows])
        mask = torch.stack([torch.arange(width, device=ids.device) >= width - len(row) for row in rows]).long()
        return ids.to(self.device), mask.to(self.device), pixels


# The name that the original repository gives this model.
LlavaLlamaForCausalLM = LlavaForConditionalGeneration


def tokens_per_image(config: Any) -> int:
    """Visual tokens of one picture: the patches of the tower, and its CLS token where that is kept."""
    side = config.vision_config.image_size // config.vision_config.patch_size
    return side**2 + (config.vision_feature_select_strategy == "full")


def _stack(images: Any, device: torch.device, dtype: torch.dtype) -> Tensor | None:
    """(n, 3, H, W) on the model's device, None for no pictures."""
    if images is None or len(images) == 0:
        return None
    if not isinstance(images, Tensor):
        images = torch.stack([image.reshape(image.shape[-3:]) for image in images])
    return images.reshape(-1, *images.shape[-3:]).to(device, dtype)
