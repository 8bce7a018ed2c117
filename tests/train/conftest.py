"""Tiny models and data to train on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image

import checkpoints
from llava.scenes.dialogues import write

COLOURS = ("red", "green", "blue", "white", "black", "yellow", "purple", "orange")


@dataclass
class World:
    """Folders: a language model and a vision tower, and a data file with its pictures."""

    root: Path
    base: Path
    tower: Path

    def data(self, name: str = "data", samples: int = 64, texts: int = 0, answer: str = "it shows {}") -> Path:
        """Coloured squares and what they show; ``texts`` samples have no picture."""
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        records = []
        for number in range(samples):
            colour = COLOURS[number % len(COLOURS)]
            Image.new("RGB", (20 + number % 5, 24), colour).save(folder / f"{number}.png")
            said = [
                {"from": "human", "value": "<image>\ndescribe the picture"},
                {"from": "gpt", "value": answer.format(colour)},
            ]
            records.append({"id": number, "image": f"{number}.png", "conversations": said})
        for number in range(texts):
            said = [
                {"from": "human", "value": "describe a star"},
                {"from": "gpt", "value": "it is " + "red " * (number % 4 + 1)},
            ]
            records.append({"id": f"t{number}", "conversations": said})
        (folder / "data.json").write_text(json.dumps(records))
        return folder / "data.json"

    def flags(self, out: Path, data: Path, *more: str, base: bool = True) -> list[str]:
        """A short run on one CPU; later flags win."""
        start = ["--model_name_or_path", str(self.base), "--vision_tower", str(self.tower)] if base else []
        return [
            *start,
            *("--data_path", str(data), "--output_dir", str(out), "--version", "v1", "--use_cpu", "True"),
            *("--mm_use_im_patch_token", "False", "--image_aspect_ratio", "pad", "--model_max_length", "256"),
            *("--per_device_train_batch_size", "8", "--learning_rate", "1e-2", "--num_train_epochs", "1"),
            *("--save_strategy", "no", "--logging_steps", "1", "--report_to", "none", "--disable_tqdm", "True"),
            *("--dataloader_pin_memory", "False", "--seed", "1", *more),
        ]


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    source = checkpoints.model()
    with torch.no_grad():
        for name, parameter in source.named_parameters():
            if parameter.ndim == 2 and ("language_model" in name or "lm_head" in name):
                parameter.mul_(6.0)  # so that attention really chooses
    return World(
        root, checkpoints.base_folder(root / "vicuna", source), checkpoints.tower_folder(root / "clip", source)
    )


@pytest.fixture(scope="session")
def squares(world):
    return world.data()


@pytest.fixture(scope="session")
def scenes(world):
    """64 scenes with three questions each."""
    return write(world.root / "scenes", pictures=64, questions=3)
