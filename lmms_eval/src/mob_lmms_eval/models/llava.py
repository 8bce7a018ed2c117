"""LLaVA-1.5 and LLaVA-1.6."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llava.constants import IMAGE_PLACEHOLDER
from llava.conversation import conv_mode_for, conv_templates
from llava.eval.prompts import build_prompt, encode
from llava.eval.run_llava import EMBEDDED
from llava.mm_utils import get_model_name_from_path, process_images, seen_box
from llava.model.builder import load_pretrained_model
from mob.picture import Box
from mob_lmms_eval.base import MoBModel, checkpoint
from mob_lmms_eval.samples import Sample, placed

OWN = "hf"  # conv_template=hf: the checkpoint's own chat template


class Llava(MoBModel):
    """Pictures, as many as a question has; no videos."""

    OPTIONS = {"model_base": str, "vision_tower": str, "conv_template": str, "load_8bit": bool, "load_4bit": bool}

    def load(self, options: dict[str, Any], device: str) -> None:
        path = options.get("pretrained") or self.PRETRAINED
        self.folder, name = checkpoint(path), get_model_name_from_path(path)
        more = {key: options[key] for key in ("attn_implementation", "vision_tower") if key in options}
        if "dtype" in options:
            more["torch_dtype"] = dtype(options["dtype"])
        if "device_map" in options:
            device = "cuda"  # the only device that the loader spreads a model over
        self.tokenizer, self.model, self.image_processor, _ = load_pretrained_model(
            self.folder,
            options.get("model_base"),
            name,
            options.get("load_8bit", False),
            options.get("load_4bit", False),
            device_map=options.get("device_map", "auto"),
            device=device,
            **more,
        )
        usual = OWN if Path(self.folder).resolve().parent == EMBEDDED.parent else _usual(name)
        self.name, self.conv_template = name, chosen(options.get("conv_template", usual), self.tokenizer)

    def prompt(self, sample: Sample) -> str:
        if sample.videos:
            raise ValueError(f"{sample.task} shows videos, and LLaVA-1.5 and 1.6 look at pictures: use another model")
        count, mode = len(sample.pictures), None if self.conv_template == OWN else self.conv_template
        text = placed(sample.text, count, IMAGE_PLACEHOLDER)
        return build_prompt(text, count, self.tokenizer, self.model.config, self.name, mode)

    def seen(self, pictures: int, size: tuple[int, int], video: bool) -> Box:
        return seen_box(size, self.image_processor, self.model.config)

    def tokens(self, text: str) -> list[int]:
        return encode(text, self.tokenizer)[0].tolist()

    def inputs(self, texts: Sequence[str], batch: Sequence[Sample]) -> dict[str, Tensor]:
        rows = [self.tokens(text) for text in texts]
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        pictures = [picture for sample in batch for picture in sample.pictures]
        tensors = [process_images([one], self.image_processor, self.model.config)[0] for one in pictures]
        return self.model.expand_images(ids, mask, tensors, [picture.size for picture in pictures])


class Llava15(Llava):
    """Without ``pretrained`` the tiny checkpoint that ships with package llava, to try things out without a network."""

    PRETRAINED = str(EMBEDDED)

    def load(self, options: dict[str, Any], device: str) -> None:
        if "pretrained" not in options:
            self._say("no pretrained= in --model_args: the tiny checkpoint answers, which knows only scenes")
        super().load(options, device)


class Llava16(Llava):
    PRETRAINED = "liuhaotian/llava-v1.6-vicuna-7b"


def _usual(name: str) -> str:
    """vicuna_v1, as in the published evaluations, but for checkpoints that were tuned on something else."""
    mode = conv_mode_for(name)
    return "vicuna_v1" if mode in ("llava_v0", "llava_v1") else mode


def chosen(template: str, tokenizer: Any) -> str:
    """A conversation template that is there.

    Raises:
        ValueError: it is not.
    """
    if template == OWN and not tokenizer.chat_template:
        raise ValueError("conv_template=hf, and this checkpoint has no chat template: use conv_template=vicuna_v1")
    if template != OWN and template not in conv_templates:
        close = difflib.get_close_matches(template, [OWN, *conv_templates], n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(sorted([OWN, *conv_templates]))}"
        raise ValueError(f"conv_template={template!r}: {hint}")
    return template


def dtype(name: str) -> Any:
    """The torch type of a name; "auto" as it is. ValueError for another name."""
    if name == "auto":
        return name
    if name not in ("float32", "float16", "bfloat16"):
        raise ValueError(f"dtype={name!r}: use auto, float32, float16 or bfloat16")
    return getattr(torch, name)
