"""Draw the pictures of the README and the sample picture of the quickstart: ``python scripts/make_images.py``.

images/scene.png is a held-out scene; images/kept.png shows which of its patches stay for two questions.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from PIL import Image, ImageDraw, ImageFont

from llava.eval.run_llava import Asker
from llava.scenes.generator import GRID, sample
from mob.picture import PROMPT_COLOUR, VISUAL_COLOUR, overlay

IMAGES = Path(__file__).parent.parent / "images"
SEED = 27
KEEP = 22
QUESTIONS = ("what number is on the sign?", "which shape is most common?")
SIDE, MARGIN, LINE = 448, 24, 30


def panel(title: str, picture: Image.Image, footer: str) -> Image.Image:
    """A picture between two lines of text."""
    out = Image.new("RGB", (SIDE, SIDE + 2 * LINE), "white")
    out.paste(picture.resize((SIDE, SIDE), Image.Resampling.NEAREST), (0, LINE))
    pen, font = ImageDraw.Draw(out), ImageFont.load_default(19)
    pen.text((0, LINE // 2), title, fill=(20, 20, 20), font=font, anchor="lm")
    pen.text((0, SIDE + LINE + LINE // 2), footer, fill=(90, 90, 90), font=font, anchor="lm")
    return out


def legend(width: int) -> Image.Image:
    out = Image.new("RGB", (width, LINE), "white")
    pen, font, x = ImageDraw.Draw(out), ImageFont.load_default(18), 0
    for text, colour in (
        ("prompt centre: stands for words of the question", PROMPT_COLOUR),
        ("visual centre: stands for the rest of the picture", VISUAL_COLOUR),
        ("dark: dropped at layer 2", (60, 60, 60)),
    ):
        pen.rectangle((x, 7, x + 16, 23), outline=colour, fill=colour if colour[0] == 60 else None, width=3)
        pen.text((x + 24, LINE // 2), text, fill=(20, 20, 20), font=font, anchor="lm")
        x += 50 + round(pen.textlength(text, font=font))
    return out


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    picture = sample(SEED).draw()
    picture.save(IMAGES / "scene.png")
    asker = Asker(SimpleNamespace(temperature=0, max_new_tokens=8, num_beams=1, mob_K=KEEP))
    panels = [panel("the picture, 196 visual tokens", picture, "")]
    for question in QUESTIONS:
        full = asker.ask(question, [picture], {})
        answer = asker.ask(question, [picture], asker.mob)
        drawn = overlay(picture, answer.record, grid=(GRID, GRID), legend=False)
        footer = f"{answer.text}   (with all 196 tokens: {full.text})"
        panels.append(panel(f"{question}  kept {answer.record.K}", drawn, footer))
    width = len(panels) * SIDE + (len(panels) + 1) * MARGIN
    out = Image.new("RGB", (width, panels[0].height + LINE + 3 * MARGIN), "white")
    for number, one in enumerate(panels):
        out.paste(one, (MARGIN + number * (SIDE + MARGIN), MARGIN))
    out.paste(legend(width - 2 * MARGIN), (MARGIN, panels[0].height + 2 * MARGIN))
    out.save(IMAGES / "kept.png", optimize=True)


if __name__ == "__main__":
    main()
