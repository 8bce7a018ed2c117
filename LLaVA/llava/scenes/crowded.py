"""Crowded pictures: 15 to 22 small objects, up to three coloured signs, two backgrounds under uneven light.

The second kind of scene, for questions that tell pruning rules apart: nearly every patch shows something, so a rule
that keeps few has to know which. Nothing overlaps. Things in the corners stand alone there, so that "the top left" is
one thing. Drawn like the scenes of ``llava.scenes.generator``, from one integer seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from PIL import Image, ImageDraw

from llava.scenes.generator import (
    BACKGROUNDS,
    COLOURS,
    GRID,
    PATCH,
    PATTERNS,
    SCALE,
    SHAPES,
    SIGN,
    SIZE,
    Patches,
    Sign,
    Thing,
    draw_background,
    draw_shape,
)

CORNER = 26.0  # side of the square in each corner that area questions are about, in pixels
CORNERS = {"top left": (0, 0), "top right": (1, 0), "bottom left": (0, 1), "bottom right": (1, 1)}
GAP = 1.5  # least distance of two things, in pixels
_RADIUS = (5.5, 7.5)
_DARK = ("red", "green", "blue", "purple")  # fills that carry white digits
_OUTLINE = 0.75  # brightness; darker ones turn thin yellow things orange
_TRIES = 120


@dataclass(frozen=True)
class CrowdedScene(Patches):
    """Everything that a picture shows.

    ``backgrounds``: two (colour, pattern); the second lies where ``x cos(a) + y sin(a) > offset`` for
    ``edge = (a, offset)``, in pixels from the middle. ``light = (a, strength)``: how much brighter (1 = twice) the
    background is at the edge of the picture in that direction, and darker at the other.
    """

    sign_half: ClassVar[tuple[float, float]] = (12.5, 9.0)
    font_size: ClassVar[int] = 14
    digit_offset: ClassVar[float] = 4.4
    digit_reach: ClassVar[float] = 7.0
    min_cover: ClassVar[float] = 0.12

    seed: int
    things: tuple[Thing, ...]
    signs: tuple[Sign, ...]
    backgrounds: tuple[tuple[str, str], tuple[str, str]]
    edge: tuple[float, float]
    light: tuple[float, float]
    noise: float

    def draw(self) -> Image.Image:
        """The picture, RGB, 112 x 112."""
        rng = np.random.default_rng([self.seed, 11])
        image = self._draw_ground(rng)
        pen = ImageDraw.Draw(image)
        for thing in self.things:
            fill = _tinted(thing.colour, rng)
            draw_shape(pen, thing, fill=fill, outline=tuple(int(v * _OUTLINE) for v in fill))
        for sign in self.signs:
            ink = (255, 255, 255) if sign.colour in _DARK else (15, 15, 15)
            self.draw_sign(pen, sign, fill=_tinted(sign.colour, rng), ink=ink)
        image = image.resize((SIZE, SIZE), Image.Resampling.BOX)
        pixels = np.asarray(image, dtype=np.float32) + rng.normal(0, self.noise, (SIZE, SIZE, 3))
        return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))

    def _draw_ground(self, rng: np.random.Generator) -> Image.Image:
        first, second = (np.asarray(draw_background(*one, rng), dtype=np.float32) for one in self.backgrounds)
        at = (np.arange(SIZE * SCALE) + 0.5) / SCALE
        ground = np.where(self._beyond(at, at)[..., None], second, first)
        angle, strength = self.light
        along = (np.cos(angle) * at[None, :] + np.sin(angle) * at[:, None]) / (SIZE / 2) - np.cos(angle) - np.sin(angle)
        return Image.fromarray(np.clip(ground * (1 + strength * along[..., None]), 0, 255).astype(np.uint8))

    def _beyond(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Whether the second background lies there, (rows, columns)."""
        angle, offset = self.edge
        return math.cos(angle) * (x[None, :] - SIZE / 2) + math.sin(angle) * (y[:, None] - SIZE / 2) > offset

    def patch_backgrounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Words for the background's colour and pattern in each patch, whoever owns it; str (196,) each."""
        centres = (np.arange(GRID) + 0.5) * PATCH
        beyond = self._beyond(centres, centres).ravel()
        (colour, pattern), (other, its) = self.backgrounds
        return np.where(beyond, other, colour), np.where(beyond, its, pattern)

    def in_corner(self, place: str) -> int | None:
        """Owner (object index, or SIGN and so on) of the only thing that reaches into a corner, if its centre does."""
        boxes = owner_boxes(self)
        near = [owner for owner, box in boxes.items() if not _apart(box, _corner_box(place))]
        if len(near) != 1:
            return None
        x, y, *_ = boxes[near[0]]
        return near[0] if _inside(x, y, place) else None


def sample(seed: int) -> CrowdedScene:
    """The scene of a seed."""
    rng = np.random.default_rng([seed, 10])
    count = int(rng.integers(15, 23))
    shapes = rng.choice(SHAPES, size=count, p=rng.dirichlet(np.full(len(SHAPES), 0.8)))
    colours = rng.choice(list(COLOURS), size=count, p=rng.dirichlet(np.full(len(COLOURS), 0.8)))
    kept = [place for place in CORNERS if rng.random() < 0.5]
    taken = [_corner_box(place) for place in kept]
    signs = _place_signs(rng, taken)
    boxes = [_in_corner(rng, place) for place in kept]
    while len(boxes) < count:
        box = _free_place(rng, taken + boxes)
        if box is None:
            break
        boxes.append(box)
    things = [
        Thing(str(shape), str(colour), x, y, radius, float(rng.uniform(-0.25, 0.25)))
        for (x, y, radius, _), shape, colour in zip(boxes, shapes, colours, strict=False)
    ]
    grounds = rng.permutation(list(BACKGROUNDS))[:2], rng.permutation(PATTERNS)[:2]
    return CrowdedScene(
        seed=seed,
        things=tuple(things),
        signs=signs,
        backgrounds=tuple((str(colour), str(pattern)) for colour, pattern in zip(*grounds, strict=True)),
        edge=(float(rng.uniform(0, 2 * math.pi)), float(rng.uniform(-28, 28))),
        light=(float(rng.uniform(0, 2 * math.pi)), float(rng.uniform(0.04, 0.14))),
        noise=float(rng.uniform(2, 7)),
    )


Box = tuple[float, float, float, float]  # centre x and y, half width, half height


def owner_boxes(scene: CrowdedScene) -> dict[int, Box]:
    """The box of every thing and sign by owner."""
    things = {index: (t.x, t.y, t.radius, t.radius) for index, t in enumerate(scene.things)}
    return things | {SIGN + index: (s.x, s.y, *scene.sign_half) for index, s in enumerate(scene.signs)}


def _place_signs(rng: np.random.Generator, taken: list[Box]) -> tuple[Sign, ...]:
    """One to three signs of different colours and numbers, away from ``taken``, to which they are added."""
    w, h = CrowdedScene.sign_half
    wanted = int(rng.choice([1, 2, 3], p=[0.2, 0.4, 0.4]))
    colours, numbers = rng.permutation(list(COLOURS)), 10 + rng.permutation(90)
    signs: list[Sign] = []
    for _ in range(_TRIES):
        if len(signs) == wanted:
            break
        x, y = float(rng.uniform(w + 1, SIZE - w - 1)), float(rng.uniform(h + 1, SIZE - h - 1))
        if all(_apart((x, y, w, h), box) for box in taken):
            taken.append((x, y, w, h))
            signs.append(Sign(str(numbers[len(signs)]), str(colours[len(signs)]), x, y))
    return tuple(signs)


def _free_place(rng: np.random.Generator, taken: list[Box]) -> Box | None:
    for _ in range(_TRIES):
        radius = float(rng.uniform(*_RADIUS))
        x, y = (float(v) for v in rng.uniform(radius + 1, SIZE - radius - 1, 2))
        if all(_apart((x, y, radius, radius), box) for box in taken):
            return x, y, radius, radius
    return None


def _in_corner(rng: np.random.Generator, place: str) -> Box:
    """Somewhere within a corner's square."""
    radius = float(rng.uniform(6.5, _RADIUS[1]))
    away = [float(v) for v in rng.uniform(radius + 1, CORNER - radius - 1, 2)]
    x, y = (SIZE - v if far else v for v, far in zip(away, CORNERS[place], strict=True))
    return x, y, radius, radius


def _corner_box(place: str) -> Box:
    x, y = (SIZE - CORNER / 2 if far else CORNER / 2 for far in CORNERS[place])
    return x, y, CORNER / 2, CORNER / 2


def _inside(x: float, y: float, place: str) -> bool:
    cx, cy, w, h = _corner_box(place)
    return abs(x - cx) <= w and abs(y - cy) <= h


def _apart(one: Box, other: Box) -> bool:
    """Whether two boxes are at least GAP away from each other."""
    x, y, w, h = one
    a, b, v, u = other
    return abs(x - a) > w + v + GAP or abs(y - b) > h + u + GAP


def _tinted(colour: str, rng: np.random.Generator) -> tuple[int, ...]:
    return tuple(int(v) for v in np.clip(np.array(COLOURS[colour]) + rng.integers(-8, 9, 3), 0, 255))
