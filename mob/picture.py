"""Pictures of what was kept: prompt centres and visual centres in two colours, dropped patches dimmed."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from mob.record import RetainedPatches

PROMPT_COLOUR = (255, 140, 0)
VISUAL_COLOUR = (0, 150, 255)
_DIM = 0.38
_SMALLEST, _LARGEST = 448, 4096  # sides of the drawing in pixels: single patches can be seen, panoramas stay files

Box = tuple[float, float, float, float]


def overlay(
    image: Image.Image | Sequence[Image.Image],
    record: RetainedPatches,
    *,
    grid: tuple[int, int] | None = None,
    number: int = 0,
    box: Box | None = None,
    legend: bool = True,
) -> Image.Image:
    """Draw the kept patches of one picture over it; a picture with several views, or a video, once for each view.

    Args:
        image: the picture as the user gave it, or the frames of a video, spread evenly over the record's views.
        record: what was kept.
        grid: rows and columns of the token grid, where the record does not say.
        number: which picture of the sample this is, counted from 0.
        box: (left, top, right, bottom) of the region that the grid covers, in pixels of ``image``; the model may have
            seen a crop, or a padded square that reaches beyond the picture. Default: the whole picture.
        legend: add a strip that says what the colours mean.

    Returns:
        A new RGB picture, enlarged where the input is small.

    Raises:
        ValueError: neither the record nor ``grid`` says how the tokens lie.
    """
    grids = [grid] if grid else (record.grids[number] if number < len(record.grids) else [])
    views = [(view, tuple(shape)) for view, shape in enumerate(grids) if shape[0] * shape[1]]
    if not views:
        raise ValueError("this record does not say how its tokens lie: give grid=(rows, columns)")
    frames = list(image) if isinstance(image, Sequence) else [image]
    panels = []
    for at, (view, shape) in enumerate(views):
        frame = frames[at * len(frames) // len(views)]
        cells = [
            (row, column, prompt)
            for which, seen, row, column, prompt in zip(
                record.image, record.view, record.row, record.column, record.prompt_center, strict=True
            )
            if which == number and seen == view and row >= 0 and column >= 0
        ]
        panels.append(_panel(frame, shape, cells, box))
    canvas = panels[0] if len(panels) == 1 else _sheet(panels)
    return _with_legend(canvas, record) if legend else canvas


def _panel(image: Image.Image, grid: tuple[int, int], cells: list[tuple[int, int, bool]], box: Box | None):
    """One view: everything dimmed but the kept cells, (row, column, is a prompt centre)."""
    scale = min(max(1.0, _SMALLEST / min(image.size)), max(1.0, _LARGEST / max(image.size)))
    size = tuple(max(1, round(side * scale)) for side in image.size)
    bright = image.convert("RGB").resize(size, Image.Resampling.NEAREST if scale > 2 else Image.Resampling.BICUBIC)
    box = tuple(v * scale for v in (box or (0, 0, *image.size)))
    canvas = Image.blend(Image.new("RGB", size), bright, _DIM)
    pen = ImageDraw.Draw(canvas)
    width = max(2, round(min(size) / 250))
    for row, column, prompt in cells:
        cell = _cell(box, grid, row, column, size)
        if cell[0] >= cell[2] or cell[1] >= cell[3]:
            continue  # lies in the padding
        canvas.paste(bright.crop(cell), cell[:2])
        pen.rectangle((cell[0], cell[1], cell[2] - 1, cell[3] - 1), outline=colour(prompt), width=width)
    return canvas


def _sheet(panels: list[Image.Image]) -> Image.Image:
    """Panels of one size, row by row: two beside each other, frames of a video up to four."""
    across = min(len(panels), 4)
    width, height = panels[0].size
    scale = min(1.0, _LARGEST / (width * across))
    width, height = max(1, round(width * scale)), max(1, round(height * scale))
    gap = 6
    down = -(-len(panels) // across)
    sheet = Image.new("RGB", (across * (width + gap) - gap, down * (height + gap) - gap), (24, 24, 24))
    for number, panel in enumerate(panels):
        place = number % across * (width + gap), number // across * (height + gap)
        sheet.paste(panel.resize((width, height)), place)
    return sheet


def colour(prompt_center: bool) -> tuple[int, int, int]:
    """RGB of a kept patch."""
    return PROMPT_COLOUR if prompt_center else VISUAL_COLOUR


def _cell(box: Box, grid: tuple[int, int], row: int, column: int, size: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Pixels of a grid cell, cut to the picture."""
    left, top, right, bottom = box
    high, wide = (bottom - top) / grid[0], (right - left) / grid[1]
    x0, x1 = left + column * wide, left + (column + 1) * wide
    y0, y1 = top + row * high, top + (row + 1) * high
    return (max(0, round(x0)), max(0, round(y0)), min(size[0], round(x1)), min(size[1], round(y1)))


def _with_legend(canvas: Image.Image, record: RetainedPatches) -> Image.Image:
    """The picture with a strip below: colours, counts, budget."""
    prompt = sum(record.prompt_center)
    texts = [(f"{prompt} prompt centres", PROMPT_COLOUR), (f"{record.K - prompt} visual centres", VISUAL_COLOUR)]
    texts.append((f"kept {record.K} of {record.N} at layer {record.layer}", (225, 225, 225)))
    font = ImageFont.load_default(min(max(12, canvas.width // 36), 48))
    line = round(font.size * 1.7)
    out = Image.new("RGB", (canvas.width, canvas.height + line), (24, 24, 24))
    out.paste(canvas, (0, 0))
    pen = ImageDraw.Draw(out)
    x, y = line // 3, canvas.height + line // 2
    for text, fill in texts:
        if fill in (PROMPT_COLOUR, VISUAL_COLOUR):
            half = font.size // 2
            pen.rectangle((x, y - half, x + 2 * half, y + half), outline=fill, width=3)
            x += 3 * half
        pen.text((x, y), text, fill=fill if fill[0] > 200 else (120, 200, 255), font=font, anchor="lm")
        x += round(pen.textlength(text, font=font)) + line // 2
    return out
