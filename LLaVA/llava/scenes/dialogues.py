"""Scenes as LLaVA data, for ``llava.train``: ``python -m llava.scenes.dialogues --out playground/scenes``.

Writes ``data.json`` and the pictures beside it. Each record is a dialogue about one picture: several questions with
one or two words for an answer. Train the embedded checkpoint on it with ``--version llava_hf``, which is how it is
prompted. None of the pictures is one that ``llava.scenes.evaluate`` asks about or that the embedded checkpoint was
trained on.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from llava.scenes.generator import Scene, sample
from llava.scenes.questions import ASK, TASKS

VERSION = "llava_hf"  # the conversation of ``llava.scenes.checkpoint.PROMPT``
FIRST = 5_000_000  # evaluation takes scenes from 0, ``llava.scenes.train`` from 10 000 000


def record(number: int, questions: int) -> dict[str, Any]:
    """The dialogue about picture ``number``: tasks drawn evenly, wordings as in training."""
    scene, rng = sample(FIRST + number), np.random.default_rng([FIRST + number, 4])
    said: list[dict[str, str]] = []
    while len(said) < 2 * questions:
        question = ASK[TASKS[int(rng.integers(len(TASKS)))]](scene, rng, plain=False)
        if question is not None:
            start = "" if said else "<image>\n"
            said += [{"from": "human", "value": start + question.text}, {"from": "gpt", "value": question.answer}]
    return {"id": number, "image": picture(number), "conversations": said}


def picture(number: int) -> str:
    return f"pictures/{number:06d}.png"


def write(folder: Path, pictures: int, questions: int) -> Path:
    """Write everything that is not there yet; the data file comes last. Returns its path."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for number in range(pictures):
        if not (folder / picture(number)).exists():
            draw(sample(FIRST + number), folder / picture(number))
    file, part = folder / "data.json", folder / f"data.{os.getpid()}"
    part.write_text(json.dumps([record(number, questions) for number in range(pictures)]))
    part.replace(file)
    return file


def draw(scene: Scene, path: Path) -> None:
    """Under another name first: a picture that is there is whole."""
    part = path.with_suffix(f".{os.getpid()}")
    scene.draw().save(part, format="PNG")
    part.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--questions", type=int, default=6, help="questions about each picture")
    args = parser.parse_args()
    if args.pictures < 1 or args.questions < 1:
        parser.error("--pictures and --questions must be at least 1")
    print(write(args.out, args.pictures, args.questions))


if __name__ == "__main__":
    main()
