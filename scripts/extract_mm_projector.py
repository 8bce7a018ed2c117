"""Take the projector out of a LLaVA: scripts/extract_mm_projector.py --model-path X --output mm_projector.bin.

X is a folder of either layout; only the projector is read. The file fits --pretrain_mm_mlp_adapter.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from safetensors import safe_open

from llava.model.formats import local_folder

_MARKS = ("mm_projector", "multi_modal_projector", "image_newline")
_LINEAR = {"linear_1": "0", "linear_2": "2"}


def extract(model_path: str, output: str) -> list[str]:
    """Write the projector under the original names; returns them.

    Raises:
        ValueError: there are no weights, or no projector among them.
    """
    folder, found = local_folder(model_path), {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            found |= {name: weights.get_tensor(name) for name in weights.keys() if _wanted(name)}  # noqa: SIM118
    if not found:
        for file in sorted([*folder.glob("pytorch_model*.bin"), *folder.glob("mm_projector.bin")]):
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            found |= {name: value for name, value in state.items() if _wanted(name)}
    if not found:
        raise ValueError(f"{folder} holds no projector: give the folder of a LLaVA")
    renamed = {_original(name): value.clone() for name, value in found.items()}
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    torch.save(renamed, output)
    return sorted(renamed)


def _wanted(name: str) -> bool:
    return any(mark in name for mark in _MARKS)


def _original(name: str) -> str:
    """ "multi_modal_projector.linear_1.weight" -> "model.mm_projector.0.weight"."""
    if "image_newline" in name:
        return "model.image_newline"
    part, kind = name.split(".")[-2:]
    return f"model.mm_projector.{_LINEAR.get(part, part)}.{kind}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--output", required=True)
    args = parser.parse_args()
    try:
        print("\n".join(extract(args.model_path, args.output)))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
