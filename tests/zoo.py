"""Tiny random models of every family that is tested, and samples for them: one table for all family tests."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers
from torch import Tensor

VOCABULARY = 64
IMAGE, VIDEO, START, END = 5, 6, 7, 8  # placeholder ids, and the marks that Qwen puts around a picture
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass
class Part:
    """A picture or video of a sample: its ids in the prompt, its tensors, and its number of visual tokens.

    ``tokens(ids)`` gives what the family's processor says of each token of a batch that has such parts.
    """

    ids: list[int]
    media: dict[str, Tensor]
    length: int
    tokens: Callable[[Tensor], dict[str, Tensor]] = lambda ids: {}


@dataclass(frozen=True)
class Family:
    """How to make a tiny model, and pictures and videos for it.

    ``picture(i)`` and ``video(i)`` give parts of different sizes for different i. ``layer`` is where the tests prune.
    """

    name: str
    make: Callable[[], torch.nn.Module]
    picture: Callable[[int], Part]
    video: Callable[[int], Part] | None = None
    layer: int = 2
    ours: bool = True  # named by the paper or by us; False: any other model that mob.attach should carry
    attends: Callable[[list[int], list[tuple[int, int]]], Tensor] | None = None  # see SlowDecoder
    turns: bool = True  # takes a second picture in a later turn, as the tests call it
    first: int = 0  # first of the samples below that it is tested with
    needs: str = ""  # a class of transformers that its oldest supported version may lack

    def model(self, dtype=torch.float64, attention: str = "sdpa") -> torch.nn.Module:
        """Weights do not depend on dtype or attention, and are large enough that attention really chooses."""
        torch.manual_seed(0)
        model = self.make().eval()
        with torch.no_grad():
            for parameter in model.get_decoder().parameters():
                if parameter.ndim == 2:
                    parameter.mul_(6.0)
            for name, parameter in model.named_parameters():
                if name.endswith(("image_newline", "class_embedding")):
                    parameter.normal_()
            head = model.get_output_embeddings().weight
            head[IMAGE] = head[VIDEO] = 0  # an untrained model would write placeholders
        model.set_attn_implementation(attention)
        for part in (part for part in model.modules() if isinstance(part, transformers.PreTrainedModel)):
            if part._can_set_experts_implementation():
                part.set_experts_implementation("eager")  # the others take no float64
        model.generation_config.eos_token_id = None
        return model.to(dtype)

    def samples(self) -> list[list]:
        """One picture, two (the second a video where there are such), none."""
        second = self.video(1) if self.video else self.picture(1)
        return [
            [1, 20, 21, self.picture(0), 30, 31, 32],
            [1, self.picture(1), 22, 23, second, 33, 34, 35, 36],
            [1, 24, 25, 26, 40, 41],
        ][self.first :]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def one(sample: list, dtype=torch.float64) -> dict[str, Tensor]:
    """A sample, not padded: (1, T)."""
    return collate([sample], dtype)


def lengths(sample: list) -> list[int]:
    """Visual tokens of its pictures."""
    return [part.length for part in sample if isinstance(part, Part)]


def collate(samples: list[list], dtype=torch.float64) -> dict[str, Tensor]:
    """Samples padded on the left, and their pictures in order."""
    rows = [[i for part in sample for i in (part.ids if isinstance(part, Part) else [part])] for sample in samples]
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    out = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    media: dict[str, list[Tensor]] = {}
    for part in (part for sample in samples for part in sample if isinstance(part, Part)):
        for name, value in part.media.items():
            media.setdefault(name, []).append(value.to(dtype) if value.is_floating_point() else value)
    for name, values in media.items():
        if name == "pixel_values" and values[0].ndim == 5:  # tiles: as many as the largest picture has
            most = max(value.shape[1] for value in values)
            values = [torch.nn.functional.pad(v, (0, 0) * 3 + (0, most - v.shape[1])) for v in values]
        out[name] = torch.cat(values)
    for part in (part for sample in samples for part in sample if isinstance(part, Part)):
        out |= part.tokens(ids)
    return out


def token_types(ids: Tensor) -> dict[str, Tensor]:
    """What positions in three parts are made from."""
    return {"mm_token_type_ids": (ids == IMAGE).long() + 2 * (ids == VIDEO).long()}


def clip(**more) -> transformers.CLIPVisionConfig:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    return transformers.CLIPVisionConfig(**sizes, image_size=32, patch_size=8, projection_dim=32, **more)


def siglip() -> transformers.SiglipVisionConfig:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    return transformers.SiglipVisionConfig(**sizes, image_size=32, patch_size=8, vision_use_head=False)


# ---------------------------------------------------------------------------------------------------------------
# The LLaVA families. Towers see 32 x 32 pixels as 4 x 4 patches.

PINPOINTS = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]  # (height, width)
SIZES = [(40, 64), (50, 33), (30, 90)]  # (height, width) of the pictures
TOKENS = [16 + 6 * 9, 16 + 8 * 7, 16 + 4 * 13]  # whole view, rows x (columns + newline), worked out by hand


def llava():
    config = transformers.LlavaConfig(
        vision_config=clip(), text_config=transformers.LlamaConfig(**TEXT), image_token_index=IMAGE
    )
    return transformers.LlavaForConditionalGeneration(config)


def llava_picture(i: int) -> Part:
    return Part([IMAGE] * 16, {"pixel_values": noise(1, 3, 32, 32, seed=i)}, 16)


def llava_next():
    text = transformers.MistralConfig(**TEXT, sliding_window=None)
    config = transformers.LlavaNextConfig(
        vision_config=clip(), text_config=text, image_token_index=IMAGE, image_grid_pinpoints=PINPOINTS
    )
    return transformers.LlavaNextForConditionalGeneration(config)


TILES = [(64, 64), (64, 64), (32, 96)]  # best resolutions of SIZES


def tiled_picture(i: int) -> Part:
    (height, width), length = TILES[i], TOKENS[i]
    tiles = 1 + (height // 32) * (width // 32)
    media = {"pixel_values": noise(1, tiles, 3, 32, 32, seed=i), "image_sizes": torch.tensor([SIZES[i]])}
    return Part([IMAGE] * length, media, length)


def llava_next_video():
    config = transformers.LlavaNextVideoConfig(
        vision_config=clip(),
        text_config=transformers.LlamaConfig(**TEXT),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=PINPOINTS,
    )
    return transformers.LlavaNextVideoForConditionalGeneration(config)


def pooled_video(i: int) -> Part:
    """Three frames of 2 x 2 pooled tokens."""
    return Part([VIDEO] * 12, {"pixel_values_videos": noise(1, 3, 3, 32, 32, seed=10 + i)}, 12)


def llava_onevision():
    config = transformers.LlavaOnevisionConfig(
        vision_config=siglip(),
        text_config=transformers.Qwen2Config(**TEXT),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio="anyres_max_9",
    )
    return transformers.LlavaOnevisionForConditionalGeneration(config)


def onevision_video(i: int) -> Part:
    """Three frames of 2 x 2 pooled tokens, and a newline."""
    return Part([VIDEO] * 13, {"pixel_values_videos": noise(1, 3, 3, 32, 32, seed=10 + i)}, 13)


def video_llava():
    config = transformers.VideoLlavaConfig(
        vision_config=clip(),
        text_config=transformers.LlamaConfig(**TEXT),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
    )
    return transformers.VideoLlavaForConditionalGeneration(config)


def video_llava_picture(i: int) -> Part:
    part = llava_picture(i)
    if "pixel_values" not in inspect.signature(transformers.VideoLlavaForConditionalGeneration.forward).parameters:
        part.media = {"pixel_values_images": part.media["pixel_values"]}  # its name in transformers 5.17
    return part


def clip_video(i: int) -> Part:
    """Three frames of 16 patches and a CLS token."""
    return Part([VIDEO] * 51, {"pixel_values_videos": noise(1, 3, 3, 32, 32, seed=10 + i)}, 51)


# ---------------------------------------------------------------------------------------------------------------
# The Qwen families. Patches of 4 x 4 pixels, merged two by two.

QWEN = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END}
GRIDS = [(1, 8, 6), (1, 4, 10), (1, 6, 6)]
ROPE = {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 10000.0}


def qwen2_vl():
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 48, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4}
    config = transformers.Qwen2VLConfig(vision_config=vision, text_config=TEXT | {"rope_parameters": ROPE}, **QWEN)
    return transformers.Qwen2VLForConditionalGeneration(config)


def qwen2_5_vl():
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "out_hidden_size": 48,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 4,
        "window_size": 16,
        "fullatt_block_indexes": [1],
    }
    config = transformers.Qwen2_5_VLConfig(vision_config=vision, text_config=TEXT | {"rope_parameters": ROPE}, **QWEN)
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def qwen3_vl():
    vision = {
        "depth": 4,
        "hidden_size": 32,
        "out_hidden_size": 48,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 4,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1, 2],
    }
    text = TEXT | {"rope_parameters": ROPE | {"mrope_interleaved": True}, "head_dim": 12}
    config = transformers.Qwen3VLConfig(vision_config=vision, text_config=text, **QWEN)
    return transformers.Qwen3VLForConditionalGeneration(config)


def qwen_picture(i: int) -> Part:
    t, h, w = GRIDS[i]
    media = {"pixel_values": noise(t * h * w, 3 * 2 * 16, seed=i), "image_grid_thw": torch.tensor([[t, h, w]])}
    return Part([START, *[IMAGE] * (h * w // 4), END], media, h * w // 4, token_types)


def qwen_video(i: int) -> Part:
    """Two times two frames, 4 x 6 patches."""
    media = {"pixel_values_videos": noise(48, 96, seed=10 + i), "video_grid_thw": torch.tensor([[2, 4, 6]])}
    return Part([START, *[VIDEO] * 12, END], media, 12, token_types)


def qwen3_video(i: int) -> Part:
    """The same, each pair of frames on its own after the text of its time."""
    pair = [START, *[VIDEO] * 6, END]
    return Part([50, 51, *pair, 50, 52, *pair], qwen_video(i).media, 12, token_types)


FAMILIES = {
    family.name: family
    for family in (
        Family("llava", llava, llava_picture),
        Family("llava_next", llava_next, tiled_picture),
        Family("llava_next_video", llava_next_video, tiled_picture, pooled_video),
        Family("llava_onevision", llava_onevision, tiled_picture, onevision_video),
        Family("video_llava", video_llava, video_llava_picture, clip_video),
        Family("qwen2_vl", qwen2_vl, qwen_picture, qwen_video),
        Family("qwen2_5_vl", qwen2_5_vl, qwen_picture, qwen_video),
        Family("qwen3_vl", qwen3_vl, qwen_picture, qwen3_video, layer=3),
    )
}

from zoo_grids import GRIDDED  # noqa: E402 (they need what is above)
from zoo_others import OTHERS  # noqa: E402
from zoo_sizes import SIZED  # noqa: E402

FAMILIES |= {family.name: family for family in (*OTHERS, *GRIDDED, *SIZED)}
