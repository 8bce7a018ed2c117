"""Procedural pictures for the embedded checkpoint: a few coloured shapes on a patterned background, sometimes a sign.

A scene is sampled from one integer seed and drawn with Pillow alone, so that every picture in a report can be drawn
again from its seed. Geometry is in pixels of the 112 x 112 picture; drawing happens at twice that size and is reduced.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIZE = 112
PATCH = 8
GRID = SIZE // PATCH
SCALE = 2

SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross")
COLOURS = {
    "red": (215, 40, 40),
    "green": (40, 160, 60),
    "blue": (45, 80, 215),
    "yellow": (240, 215, 40),
    "purple": (140, 50, 170),
    "orange": (245, 135, 25),
}
BACKGROUNDS = {"grey": (150, 150, 150), "beige": (226, 206, 166), "pink": (240, 186, 200), "cyan": (165, 218, 224)}
PATTERNS = ("plain", "stripes", "checks", "dots", "grid")

# Owners of a patch: the index of an object, BACKGROUND, or SIGN plus the index of a sign.
BACKGROUND, SIGN = -1, 99


@dataclass(frozen=True)
class Thing:
    """One object: words for shape and colour, centre and radius in pixels, rotation in radians."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    angle: float


@dataclass(frozen=True)
class Sign:
    """A rectangle with a two-digit number: its text, its fill's colour word (None is white), centre in pixels."""

    number: str
    colour: str | None
    x: float
    y: float


class Patches:
    """Which patches show what, for scenes with ``things`` and ``signs``."""

    sign_half: ClassVar[tuple[float, float]] = (14.5, 10.5)
    font_size: ClassVar[int] = 15
    digit_offset: ClassVar[float] = 4.7  # of a digit's centre from the sign's
    digit_reach: ClassVar[float] = 8.0  # rows this near to the sign's centre show digits
    min_cover: ClassVar[float] = 0.2  # share of a patch that a thing must cover to own it

    things: tuple[Thing, ...]
    signs: tuple[Sign, ...]

    def sign_box(self, sign: Sign) -> tuple[float, float, float, float]:
        """Left, top, right, bottom, in pixels of the canvas that is drawn on."""
        w, h = self.sign_half
        return ((sign.x - w) * SCALE, (sign.y - h) * SCALE, (sign.x + w) * SCALE, (sign.y + h) * SCALE)

    def patch_cover(self) -> dict[int, np.ndarray]:
        """Share of each patch that a thing covers, by owner (object index or SIGN and so on); float64 (196,)."""
        canvas = Image.new("L", (SIZE * SCALE, SIZE * SCALE), 0)
        pen = ImageDraw.Draw(canvas)
        owners = list(range(len(self.things)))
        for index, thing in enumerate(self.things):
            draw_shape(pen, thing, fill=index + 1, outline=index + 1)
        for index, sign in enumerate(self.signs):
            owners.append(SIGN + index)
            pen.rectangle(self.sign_box(sign), fill=SIGN + index + 1)
        blocks = np.asarray(canvas).reshape(GRID, PATCH * SCALE, GRID, PATCH * SCALE)
        blocks = blocks.transpose(0, 2, 1, 3).reshape(GRID * GRID, -1)
        return {owner: (blocks == owner + 1).mean(1) for owner in owners}

    def patch_owners(self) -> np.ndarray:
        """Owner of each of the 196 patches in raster order: an object, a sign or BACKGROUND; int64 (196,)."""
        owners = np.full(GRID * GRID, BACKGROUND, dtype=np.int64)
        best = np.full(GRID * GRID, self.min_cover)
        for owner, cover in self.patch_cover().items():
            owners = np.where(cover >= best, owner, owners)
            best = np.maximum(best, cover)
        return owners

    def patch_digits(self) -> np.ndarray:
        """The digit (0..9) that a patch shows most of, or -1; int64 (196,). Left and right half of each sign."""
        digits = np.full((GRID, GRID), -1, dtype=np.int64)
        centres = (np.arange(GRID) + 0.5) * PATCH
        for sign in self.signs:
            rows = np.abs(centres - sign.y) < self.digit_reach
            for side, digit in zip((-1, 1), sign.number, strict=True):
                columns = np.abs(centres - (sign.x + side * self.digit_offset)) < self.digit_offset
                digits[np.ix_(rows, columns)] = int(digit)
        return digits.ravel()

    def draw_sign(self, pen: ImageDraw.ImageDraw, sign: Sign, fill, ink) -> None:
        pen.rectangle(self.sign_box(sign), fill=fill, outline=(60, 60, 60), width=2)
        font = _font(self.font_size * SCALE)
        for side, digit in zip((-1, 1), sign.number, strict=True):
            centre = ((sign.x + side * self.digit_offset) * SCALE, sign.y * SCALE)
            pen.text(centre, digit, fill=ink, font=font, anchor="mm")


@dataclass(frozen=True)
class Scene(Patches):
    """Everything that a picture shows. ``number`` is the text of the sign, or None; ``sign`` its centre in pixels."""

    seed: int
    things: tuple[Thing, ...]
    background: str
    pattern: str
    number: str | None
    sign: tuple[float, float] | None
    noise: float

    def draw(self) -> Image.Image:
        """The picture, RGB, 112 x 112."""
        rng = np.random.default_rng([self.seed, 1])
        image = draw_background(self.background, self.pattern, rng)
        pen = ImageDraw.Draw(image)
        for thing in self.things:
            tint = rng.integers(-14, 15, 3)
            fill = tuple(int(v) for v in np.clip(np.array(COLOURS[thing.colour]) + tint, 0, 255))
            draw_shape(pen, thing, fill=fill, outline=tuple(int(v * 0.6) for v in fill))
        for sign in self.signs:
            self.draw_sign(pen, sign, fill=(252, 252, 252), ink=(15, 15, 15))
        image = image.resize((SIZE, SIZE), Image.Resampling.BOX)
        pixels = np.asarray(image, dtype=np.float32) + rng.normal(0, self.noise, (SIZE, SIZE, 3))
        return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))

    @property
    def signs(self) -> tuple[Sign, ...]:
        return () if self.sign is None else (Sign(self.number, None, *self.sign),)

    def patch_backgrounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Words for the background's colour and pattern in each patch, whoever owns it; str (196,) each."""
        return np.full(GRID * GRID, self.background), np.full(GRID * GRID, self.pattern)


def sample(seed: int) -> Scene:
    """The scene of a seed: 3 to 9 objects, five patterns on four colours, a two-digit sign in three of four."""
    rng = np.random.default_rng([seed, 0])
    shapes = rng.choice(SHAPES, size=9, p=rng.dirichlet(np.full(len(SHAPES), 0.7)))
    colours = rng.choice(list(COLOURS), size=9, p=rng.dirichlet(np.full(len(COLOURS), 0.7)))
    sign, number = None, None
    taken: list[tuple[float, float, float, float]] = []
    if rng.random() < 0.75:
        half_w, half_h = Scene.sign_half
        sign = (float(rng.uniform(half_w + 1, SIZE - half_w - 1)), float(rng.uniform(half_h + 1, SIZE - half_h - 1)))
        number = str(rng.integers(10, 100))
        taken.append((*sign, half_w, half_h))
    things = []
    for index in range(int(rng.integers(3, 10))):
        place = _free_place(rng, taken)
        if place is None:
            break
        x, y, radius = place
        taken.append((x, y, radius, radius))
        things.append(Thing(str(shapes[index]), str(colours[index]), x, y, radius, float(rng.uniform(-0.25, 0.25))))
    return Scene(
        seed=seed,
        things=tuple(things),
        background=str(rng.choice(list(BACKGROUNDS))),
        pattern=str(rng.choice(PATTERNS)),
        number=number,
        sign=sign,
        noise=float(rng.uniform(2, 7)),
    )


def _free_place(rng: np.random.Generator, taken: list[tuple[float, float, float, float]]):
    """A centre and radius that touches nothing in ``taken`` (boxes x, y, half width, half height), or None."""
    for _ in range(60):
        radius = rng.uniform(7.5, 10.5)
        x, y = rng.uniform(radius + 1, SIZE - radius - 1, 2)
        if all(abs(x - a) > radius + w + 1.5 or abs(y - b) > radius + h + 1.5 for a, b, w, h in taken):
            return float(x), float(y), float(radius)
    return None


def draw_background(background: str, pattern: str, rng: np.random.Generator) -> Image.Image:
    """One colour and one pattern, on the canvas that is drawn on."""
    side = SIZE * SCALE
    base = np.array(BACKGROUNDS[background], dtype=np.float32) + rng.uniform(-8, 9)
    other = base + (-34 if base.mean() > 170 else 36)
    light, dark = (tuple(int(v) for v in np.clip(c, 0, 255)) for c in (base, other))
    image = Image.new("RGB", (side, side), light)
    pen = ImageDraw.Draw(image)
    pitch = int(rng.integers(14, 21))
    start = -int(rng.integers(0, pitch))
    steps = range(start, side + pitch, pitch)
    if pattern == "stripes":
        for y in steps:
            pen.rectangle((0, y, side, y + pitch // 2 - 1), fill=dark)
    elif pattern == "checks":
        for i, y in enumerate(steps):
            for j, x in enumerate(steps):
                if (i + j) % 2:
                    pen.rectangle((x, y, x + pitch - 1, y + pitch - 1), fill=dark)
    elif pattern == "dots":
        radius = pitch * 0.27
        for y in steps:
            for x in steps:
                pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=dark)
    elif pattern == "grid":
        for at in steps:
            pen.rectangle((at, 0, at + 2, side), fill=dark)
            pen.rectangle((0, at, side, at + 2), fill=dark)
    return image


def draw_shape(pen: ImageDraw.ImageDraw, thing: Thing, fill, outline) -> None:
    x, y, r = thing.x * SCALE, thing.y * SCALE, thing.radius * SCALE
    if thing.shape == "circle":
        r *= 0.92
        pen.ellipse((x - r, y - r, x + r, y + r), fill=fill, outline=outline, width=2)
        return
    pen.polygon(_corners(thing.shape, x, y, r, thing.angle), fill=fill, outline=outline, width=2)


def _corners(shape: str, x: float, y: float, r: float, angle: float) -> list[tuple[float, float]]:
    """Corner points of a polygon of circumradius r around (x, y), turned by ``angle``."""
    if shape == "cross":
        arm = 0.36
        unit = [(-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm)]
        unit += [(arm, 1), (-arm, 1), (-arm, arm), (-1, arm), (-1, -arm), (-arm, -arm)]
    elif shape == "square":
        unit = [(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)]
    elif shape == "diamond":
        unit = [(0, -1.05), (0.68, 0), (0, 1.05), (-0.68, 0)]
    elif shape == "triangle":
        unit = [(0, -1.0), (0.98, 0.78), (-0.98, 0.78)]
    else:  # star: ten points, alternating radius
        unit = []
        for i in range(10):
            reach = 1.08 if i % 2 == 0 else 0.45
            unit.append((reach * math.sin(i * math.pi / 5), -reach * math.cos(i * math.pi / 5)))
    c, s = math.cos(angle), math.sin(angle)
    return [(x + r * (a * c - b * s), y + r * (a * s + b * c)) for a, b in unit]


@cache
def _font(size: int):
    return ImageFont.load_default(size)
