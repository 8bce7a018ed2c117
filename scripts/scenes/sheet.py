"""Pictures with questions and answers on one sheet: scripts/scenes/sheet.py out.png [--split crowded] [--first 0].

Nine held-out scenes, each with three of its questions; the patches that carry the first one's answer are outlined.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from llava.scenes.generator import GRID, PATCH, SIZE
from llava.scenes.splits import SPLITS

ZOOM, LINE, ASKED, ACROSS, COUNT = 3, 17, 3, 3, 9


def panel(split: str, number: int) -> Image.Image:
    """Scene ``number`` with its questions beneath; which tasks they are of goes round with the number."""
    kind = SPLITS[split]
    scene, questions = kind.scene(number), []
    order = [(number * ASKED + i) % len(kind.tasks) for i in range(len(kind.tasks))]
    for task in order:
        question = kind.ask[kind.tasks[task]](scene, np.random.default_rng([number, 3, task]))
        if question is not None and len(questions) < ASKED:
            questions.append(question)
    out = Image.new("RGB", (SIZE * ZOOM, SIZE * ZOOM + LINE * ASKED + 6), "white")
    out.paste(scene.draw().resize((SIZE * ZOOM, SIZE * ZOOM), Image.Resampling.NEAREST))
    pen, font, side = ImageDraw.Draw(out), ImageFont.load_default(10), PATCH * ZOOM
    for patch in np.flatnonzero(questions[0].answer_patches(scene.patch_owners())):
        x, y = patch % GRID * side, patch // GRID * side
        pen.rectangle((x, y, x + side - 1, y + side - 1), outline=(0, 0, 0))
    for line, question in enumerate(questions):
        text = f"{question.text} {question.answer}"
        pen.text((2, SIZE * ZOOM + LINE * line + 3), text, fill=(20, 20, 20), font=font)
    return out


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--split", choices=tuple(SPLITS), default="crowded")
    parser.add_argument("--first", type=int, default=0, help="number of the first scene")
    args = parser.parse_args(argv)
    if args.first < 0:
        parser.error("--first must not be negative")
    panels = [panel(args.split, args.first + i) for i in range(COUNT)]
    width, height = panels[0].width + 12, panels[0].height + 8
    sheet = Image.new("RGB", (ACROSS * width - 12, COUNT // ACROSS * height - 8), "white")
    for i, one in enumerate(panels):
        sheet.paste(one, (i % ACROSS * width, i // ACROSS * height))
    sheet.quantize(128).save(args.out, optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
