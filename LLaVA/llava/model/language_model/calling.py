"""``generate(ids, images=..., image_sizes=..., modalities=...)``, as the original repositories call their models."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from llava.constants import IMAGE_TOKEN_INDEX
from mob.layout import picture_of, video_of

IMAGE, VIDEO = "image", "video"
Sizes = Sequence[tuple[int, int]] | None


class OriginalCall:
    """Put before the other bases: ``generate`` understands ``images``; ``forward`` stays the stock one.

    Called the original way, with ``images``, only new tokens are returned, as the original does; called the
    transformers way, with ``pixel_values``, prompt and new tokens, as transformers does.
    """

    def generate(
        self,
        inputs: Tensor | None = None,
        images: Any = False,
        image_sizes: Sizes = None,
        modalities: str | Sequence[str] = (IMAGE,),
        **kwargs: Any,
    ) -> Any:
        """Generate.

        Args:
            inputs: ids (B, T); -200 (or the ``<image>`` or ``<video>`` token) once for each entry of ``images``.
            images: what ``process_images`` (or ``process_video``) gave, pictures and videos in the order of their
                places: (3, H, W) or (tiles, 3, H, W) for a picture, (frames, 3, H, W) for a video; a list, or a tensor
                of equal ones. None: text only.
            image_sizes: (width, height) of each entry before processing; needed where pictures are cut into tiles.
            modalities: "image" or "video" for each entry, or one for all.
            kwargs: of the stock ``generate``.

        Raises:
            ValueError: ids, images, sizes and modalities do not fit together.
        """
        if inputs is None:
            inputs = kwargs.pop("input_ids", None)
        if images is False:
            if image_sizes is not None:
                kwargs["image_sizes"] = image_sizes  # the stock model's own, (height, width)
            return super().generate(inputs, **kwargs)
        given = self.expand_images(inputs, kwargs.pop("attention_mask", None), images, image_sizes, modalities)
        ids = given.pop("input_ids")
        out = super().generate(ids, **given, **kwargs)
        if isinstance(out, Tensor):
            return out[:, ids.shape[1] :]
        out.sequences = out.sequences[:, ids.shape[1] :]
        return out

    def expand_images(
        self,
        ids: Tensor,
        mask: Tensor | None,
        images: Any,
        image_sizes: Sizes = None,
        modalities: str | Sequence[str] = (IMAGE,),
    ) -> dict[str, Tensor]:
        """The stock model's inputs for an original call, padded on the left, on the model's device; see ``generate``.

        Args:
            mask: (B, T), or None when nothing is padded.
        """
        media = [_four_dimensional(one) for one in (() if images is None else images)]
        kinds = list(_kinds(modalities, len(media)))
        if VIDEO in kinds and not hasattr(self.config, "video_token_id"):
            raise ValueError(
                f"a model of type {self.config.model_type!r} takes pictures only: give each frame as one, or load a "
                "model for videos with llava_next.model.builder"
            )
        sizes = list(image_sizes) if image_sizes is not None else [None] * len(media)
        rows, places = self._rows(ids, mask)
        counted = [len(here) for here in places]
        if sum(counted) != len(media) or len(sizes) < len(media):
            raise ValueError(
                f"the prompt names {sum(counted)} image(s), and {len(media)} with {len(sizes)} sizes were given: put "
                "one <image> into the prompt for each picture"
            )
        entries = iter(zip(media, kinds, sizes, strict=False))
        samples = [[next(entries) for _ in here] for here in places]
        filled = [self._fill(*one) for one in zip(rows, places, samples, strict=True)]
        out = self._pad(filled) | self._media(samples)
        return {k: v.to(self.device, self.dtype if v.is_floating_point() else None) for k, v in out.items()}

    def _token(self, kind: str) -> int:
        return self.config.video_token_id if kind == VIDEO else self.config.image_token_id

    def _rows(self, ids: Tensor, mask: Tensor | None) -> tuple[list[list[int]], list[list[int]]]:
        """Rows without padding, and where their pictures go."""
        marks = {IMAGE_TOKEN_INDEX, self.config.image_token_id, getattr(self.config, "video_token_id", None)}
        ids = torch.as_tensor(ids).cpu()
        mask = torch.ones_like(ids) if mask is None else torch.as_tensor(mask).cpu()
        rows = [row[real].tolist() for row, real in zip(ids, mask.bool(), strict=True)]
        return rows, [[i for i, token in enumerate(row) if token in marks] for row in rows]

    def _fill(self, row: list[int], places: list[int], entries: list[tuple]) -> list[int]:
        """One row with as many placeholders for each entry as the model makes features for it."""
        alone = [kind for _, kind, _ in entries].count(IMAGE) == 1
        out, start = [], 0
        for place, (tensor, kind, size) in zip(places, entries, strict=True):
            if kind == VIDEO:
                picture = video_of(self.config, len(tensor))
            else:
                picture = picture_of(self.config, size and size[::-1], alone)
            out += row[start:place] + [self._token(kind)] * picture.length
            start = place + 1
        return out + row[start:]

    def _pad(self, rows: list[list[int]]) -> dict[str, Tensor]:
        width, pad = max(map(len, rows)), self.config.text_config.pad_token_id or 0
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        return {"input_ids": ids, "attention_mask": mask}

    def _media(self, samples: list[list[tuple]]) -> dict[str, Tensor]:
        """Pictures and videos as the stock forward takes them."""
        out: dict[str, Tensor] = {}
        pictures = [[(tensor, size) for tensor, kind, size in row if kind == IMAGE] for row in samples]
        if flat := [one for row in pictures for one in row]:
            tensors = [tensor for tensor, _ in flat]
            if self.config.model_type == "llava_onevision":  # among several pictures only the whole view is used
                alone = [len(row) == 1 for row in pictures for _ in row]
                tensors = [one if single else one[:1] for one, single in zip(tensors, alone, strict=True)]
                out["batch_num_images"] = torch.tensor([len(row) for row in pictures if row])
            tiled = getattr(self.config, "image_grid_pinpoints", None)
            out[self._picture_key()] = _equal_tiles(tensors) if tiled else torch.cat(tensors)
            if tiled:
                out["image_sizes"] = torch.tensor([size[::-1] if size else (1, 1) for _, size in flat])
        videos = [tensor for row in samples for tensor, kind, _ in row if kind == VIDEO]
        if len({len(video) for video in videos}) > 1:
            raise ValueError("videos of one call must have equally many frames: process them with the same number")
        if videos:
            out["pixel_values_videos"] = torch.stack(videos)
        return out

    def _picture_key(self) -> str:
        """Video-LLaVA calls its pictures something else in transformers 5.17."""
        known = inspect.signature(super().forward).parameters
        return "pixel_values" if "pixel_values" in known else "pixel_values_images"


def _kinds(modalities: str | Sequence[str], count: int) -> Iterator[str]:
    """What each of ``count`` entries is."""
    kinds = [kind for kind in ([modalities] if isinstance(modalities, str) else modalities) if kind != "text"]
    if wrong := set(kinds) - {IMAGE, VIDEO}:
        raise ValueError(f"modality {sorted(wrong)[0]!r}: use {IMAGE} or {VIDEO}")
    if len(kinds) not in (1, count) and count:
        raise ValueError(f"{len(kinds)} modalities for {count} pictures and videos: give one for each, or one for all")
    return kinds * count if len(kinds) == 1 else kinds


def _equal_tiles(tensors: list[Tensor]) -> Tensor:
    """[(tiles, 3, H, W)] -> (n, most tiles, 3, H, W), filled up with zeros that the model cuts off again."""
    most = max(map(len, tensors))
    return torch.stack([torch.nn.functional.pad(one, (0, 0) * 3 + (0, most - len(one))) for one in tensors])


def _four_dimensional(one: Any) -> Tensor:
    """(3, H, W) -> (1, 3, H, W)."""
    one = torch.as_tensor(one)
    return one if one.ndim == 4 else one.reshape(-1, *one.shape[-3:])
