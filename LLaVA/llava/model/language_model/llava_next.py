"""LLaVA-1.6 (LLaVA-NeXT) with MoB: pictures in tiles, packed by the rule of the checkpoint they come from."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.models.llava_next import modeling_llava_next

from llava.model.language_model.calling import OriginalCall
from mob import MoBMixin
from mob.layout import tile_grid, truncates
from mob.modeling import keep_key_conversions


class OriginalUnpadding:
    """Put before a stock model: the padding of tiles is cut as the original does where the config is the original's.

    The two rules differ by a row or column of some pictures (``mob.layout.tile_grid``).
    """

    def pack_image_features(
        self, image_features: Any, image_sizes: Any, vision_feature_select_strategy: str, image_newline: Any = None
    ) -> tuple[list[Tensor], Tensor]:
        """(tiles, tokens, d) of each picture -> [(n, d)], and n of each; ``image_sizes`` are (height, width)."""
        if not truncates(self.config):
            return super().pack_image_features(
                image_features, image_sizes, vision_feature_select_strategy, image_newline
            )
        packed = [self._pack(one, size, image_newline) for one, size in zip(image_features, image_sizes, strict=True)]
        return packed, torch.tensor([len(one) for one in packed], device=packed[0].device)

    def _pack(self, features: Tensor, size: Any, newline: Tensor | None) -> Tensor:
        """The whole view, then the tiles' grid without its padding, row by row, each row ended by a newline."""
        whole, parts = features[0], features[1:]
        side = self.config.vision_config.image_size // self.config.vision_config.patch_size
        height, width = (int(value) for value in size)
        rows, columns = tile_grid(self.config, height, width)
        down, across = modeling_llava_next.get_anyres_image_grid_shape(
            (height, width),
            [list(pair) for pair in self.config.image_grid_pinpoints],
            self.config.vision_config.image_size,
        )
        grid = parts.reshape(down, across, side, side, -1).transpose(1, 2).reshape(down * side, across * side, -1)
        top, left = (grid.shape[0] - rows) // 2, (grid.shape[1] - columns) // 2
        grid = grid[top : top + rows, left : left + columns]
        if newline is not None:
            grid = torch.cat([grid, newline.to(grid).expand(rows, 1, -1)], 1)
        return torch.cat([whole, grid.flatten(0, 1)])


class LlavaNextModel(OriginalUnpadding, modeling_llava_next.LlavaNextModel):
    """The stock model with both rules."""


keep_key_conversions(LlavaNextModel, modeling_llava_next.LlavaNextModel)


class LlavaNextForConditionalGeneration(OriginalCall, MoBMixin, transformers.LlavaNextForConditionalGeneration):
    """Stock LLaVA-NeXT that honours ``config.MoB_config``; ``generate`` also takes ``images=`` and ``image_sizes=``."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.model.__class__ = LlavaNextModel  # the same module with one more rule; nothing is built twice
