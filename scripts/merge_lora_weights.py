"""Make a whole model of a LoRA or projector-only folder: scripts/merge_lora_weights.py --model-path X --model-base Y
--save-model-path Z. The result is a folder of transformers, or with --save-format original one like liuhaotian/*.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from llava.mm_utils import get_model_name_from_path
from llava.model.builder import load_pretrained_model
from llava.model.formats import local_folder, read_config
from llava.train.build import Start
from llava.train.saving import save_full, save_processors

_DTYPES = ("float16", "bfloat16", "float32")


def merge(
    model_path: str, model_base: str | None, save_path: str, save_format: str = "hf", dtype: str = "float16"
) -> None:
    """Load, merge and save.

    Raises:
        ValueError: the folders do not fit together.
    """
    if dtype not in _DTYPES:
        raise ValueError(f"--dtype {dtype}: use {', '.join(_DTYPES)}")
    name = get_model_name_from_path(model_path)
    tokenizer, model, image_processor, _ = load_pretrained_model(
        model_path, model_base, name, device="cpu", torch_dtype=getattr(torch, dtype)
    )
    target = Path(save_path)
    target.mkdir(parents=True, exist_ok=True)
    files = local_folder(model_base) if model_base else local_folder(model_path)
    described = read_config(local_folder(model_path))
    tower, longest = described.get("mm_vision_tower"), described.get("tokenizer_model_max_length")
    if longest:  # a base knows nothing of it
        model.config.tokenizer_model_max_length = tokenizer.model_max_length = longest
    start = Start(tokenizer, model, image_processor, tower, True, None, files)
    if save_format == "original":
        if tower is None:
            raise ValueError(f"{model_path} does not name its vision tower: use --save-format hf")
        save_full(start, target, model.state_dict())
        return
    model.save_pretrained(target)
    save_processors(start, target)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--model-base")
    parser.add_argument("--save-model-path", required=True)
    parser.add_argument("--save-format", choices=("hf", "original"), default="hf")
    parser.add_argument("--dtype", default="float16", help="float16, bfloat16 or float32")
    args = parser.parse_args()
    try:
        merge(args.model_path, args.model_base, args.save_model_path, args.save_format, args.dtype)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
