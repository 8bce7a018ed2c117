"""LLaVA-OneVision, LLaVA-NeXT-Video and Video-LLaVA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from llava.constants import IMAGE_PLACEHOLDER
from llava_next.mm_utils import get_model_name_from_path, process_video
from llava_next.model.builder import load_pretrained_model
from llava_next.processing import check_family, prepare, seen, seen_of_frames, token_ids
from llava_next.prompts import build_prompt, usual_mode
from mob.picture import Box
from mob_lmms_eval.base import MoBModel, checkpoint
from mob_lmms_eval.models.llava import OWN, chosen, dtype
from mob_lmms_eval.samples import Sample, placed


class LlavaNext(MoBModel):
    """Pictures and videos, of which ``frames`` frames are read, spread evenly."""

    OPTIONS = {"conv_template": str, "frames": int, "load_8bit": bool, "load_4bit": bool}
    FRAMES: int
    CONVERSATION: str | None = None  # None: the checkpoint's own, where it has one

    def load(self, options: dict[str, Any], device: str) -> None:
        path = options.get("pretrained") or self.PRETRAINED
        self.folder = checkpoint(path)
        self.frames = options.get("frames", self.FRAMES)
        if self.frames < 1:
            raise ValueError(f"frames={self.frames}: read at least one frame of a video")
        more = {"torch_dtype": dtype(options["dtype"])} if "dtype" in options else {}
        self.tokenizer, self.model, self.image_processor, _ = load_pretrained_model(
            self.folder,
            None,
            get_model_name_from_path(path),
            options.get("load_8bit", False),
            options.get("load_4bit", False),
            device_map=options.get("device_map", "auto"),
            attn_implementation=options.get("attn_implementation"),
            device="cuda" if "device_map" in options else device,
            **more,
        )
        check_family(self.model.config)
        usual = self.CONVERSATION or (
            OWN if self.tokenizer.chat_template else usual_mode(self.tokenizer, self.model.config)
        )
        self.conv_template = chosen(options.get("conv_template", usual), self.tokenizer)

    def prompt(self, sample: Sample) -> str:
        pictures, videos = len(sample.pictures), len(sample.videos)
        text = placed(sample.text, pictures, IMAGE_PLACEHOLDER)
        mode = None if self.conv_template == OWN else self.conv_template
        return build_prompt(text, pictures, videos, self.tokenizer, self.model.config, mode)

    def seen(self, pictures: int, size: tuple[int, int], video: bool) -> Box:
        if video:
            return seen_of_frames(size, self.image_processor)
        return seen(size, pictures, self.image_processor, self.model.config)

    def tokens(self, text: str) -> list[int]:
        return token_ids(text, self.tokenizer)

    def inputs(self, texts: Sequence[str], batch: Sequence[Sample]) -> dict[str, Tensor]:
        videos = [[process_video(one, self.image_processor, self.frames) for one in sample.videos] for sample in batch]
        pictures = [sample.pictures for sample in batch]
        return prepare(list(texts), self.tokenizer, self.image_processor, self.model.config, pictures, videos)


class LlavaOnevision(LlavaNext):
    PRETRAINED = "llava-hf/llava-onevision-qwen2-7b-ov-hf"
    FRAMES = 32
    CONVERSATION = "qwen_1_5"


class VideoLlava(LlavaNext):
    PRETRAINED = "LanguageBind/Video-LLaVA-7B-hf"
    FRAMES = 8
