"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from llava.model.builder import best_device
from mob_lmms_eval.base import MoBModel, checkpoint
from mob_lmms_eval.models.llava import dtype
from mob_lmms_eval.samples import Sample, placed
from Qwen2VL_MoB.chat import ATTENTION, load
from Qwen2VL_MoB.dialogue import _options
from Qwen2VL_MoB.patches import Patches
from Qwen2VL_MoB.prompts import IMAGE_PLACE, SYSTEM, encode, expand, pad_batch, place, render


class Qwen(MoBModel):
    """Pictures and videos; sizes by the checkpoint's files unless ``min_pixels`` and ``max_pixels`` say otherwise."""

    OPTIONS = {"min_pixels": int, "max_pixels": int, "system": str, "fps": float, "frames": int}
    LENGTH = 128
    CONTINUE = False

    def load(self, options: dict[str, Any], device: str) -> None:
        self.folder = checkpoint(options.get("pretrained") or self.PRETRAINED)
        attention = options.get("attn_implementation", "sdpa")
        if attention not in ATTENTION:
            raise ValueError(f"attn_implementation={attention!r}: use one of {', '.join(ATTENTION)}")
        if "device_map" in options:
            raise ValueError("device_map is not for Qwen models here: use --device, or one process for each GPU")
        if "fps" in options and "frames" in options:
            raise ValueError("fps and frames both say how many frames of a video to read: give one of them")
        device = best_device(device)
        kind = options.get("dtype", "float32" if device == "cpu" else "auto")
        dtype(kind)  # says what there is
        self.tokenizer, self.model = load(
            Namespace(model_path=self.folder, device=device, attn=attention, dtype=kind, mob_off=False)
        )
        self.model.config.MoB_config = self.model.config.MoB_config or {}
        self.pixels = options.get("min_pixels"), options.get("max_pixels")
        self.rate = {"fps": options["fps"]} if "fps" in options else {}
        self.rate |= {"nframes": options["frames"]} if "frames" in options else {}
        self.system = options.get("system", SYSTEM)
        self.processing = self.model.processing(self.tokenizer)

    def prompt(self, sample: Sample) -> str:
        pictures, videos = len(sample.pictures), len(sample.videos)
        text = placed(sample.text, pictures, IMAGE_PLACE)
        messages = [
            {"role": "system", "content": self.system},
            {"role": "user", "content": place(text, pictures, videos)},
        ]
        return render(messages, self.tokenizer, self.model.config.model_type)

    def tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def inputs(self, texts: Sequence[str], batch: Sequence[Sample]) -> dict[str, Tensor]:
        config, rows = self.model.config, []
        for text, sample in zip(texts, batch, strict=True):
            pictures, videos = self._patches(sample)
            text = expand(text, pictures, videos, self.processing.merge, config.model_type)
            rows.append(encode(text, self.tokenizer, config) | self.processing.collect(pictures, videos))
        return pad_batch(rows, self.model.generation_config.pad_token_id or 0)

    def _patches(self, sample: Sample) -> tuple[list[Patches], list[Patches]]:
        videos = [{"video": path, **self.rate} for path in sample.videos]
        return (
            self.processing.pictures(sample.pictures or None, *self.pixels),
            self.processing.videos(videos or None, *self.pixels),
        )

    def options(self, options: dict[str, Any]) -> dict[str, Any]:
        """An answer ends at <|im_end|> whatever else the checkpoint says."""
        given = {name: value for name, value in options.items() if name != "max_new_tokens"}
        return _options(self.tokenizer, self.model.generation_config, options["max_new_tokens"], given)


class Qwen2VL(Qwen):
    PRETRAINED = "Qwen/Qwen2-VL-7B-Instruct"


class Qwen25VL(Qwen):
    PRETRAINED = "Qwen/Qwen2.5-VL-7B-Instruct"
