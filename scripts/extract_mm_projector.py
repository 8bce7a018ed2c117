"""Take the projector out of a LLaVA: scripts/extract_mm_projector.py --model-path X --output mm_projector.bin.

X is a folder of either layout; only the projector is read. The file fits --pretrain_mm_mlp_adapter.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from llava.model.adapters import stored_projector
from llava.model.formats import local_folder
from llava.train.saving import original_name


def extract(model_path: str, output: str) -> list[str]:
    """Write the projector under the original names; returns them.

    Raises:
        ValueError: there are no weights, or no projector among them.
    """
    found = {original_name(name): value for name, value in stored_projector(local_folder(model_path)).items()}
    file = Path(output)
    if file.is_dir():
        raise ValueError(f"--output {output} is a folder: name a file in it, such as {file / 'mm_projector.bin'}")
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(found, file)
    return sorted(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--output", required=True)
    args = parser.parse_args()
    try:
        print("\n".join(extract(args.model_path, args.output)))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
