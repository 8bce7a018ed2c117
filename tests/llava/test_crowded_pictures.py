"""Crowded scenes: what is in them and where, and that easy ones are what they were."""

from __future__ import annotations

import hashlib
from itertools import combinations

import numpy as np

from llava.scenes import crowded, generator
from llava.scenes.crowded import GAP, owner_boxes
from llava.scenes.crowded_questions import (
    ASK,
    TASKS,
)
from llava.scenes.evaluate import questions
from llava.scenes.generator import BACKGROUND, COLOURS, GRID, PATCH, SIGN, SIZE
from llava.scenes.packing import NUM_PATCHES, PREFIX, ScenePictures
from llava.scenes.splits import SPLITS

CROWDED = SPLITS["crowded"]
SCENES = [CROWDED.scene(number) for number in range(150)]


def rng(seed=0):
    return np.random.default_rng(seed)


def digest(parts) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(part if isinstance(part, bytes) else repr(part).encode())
    return total.hexdigest()[:16]


def test_easy_scenes_are_what_they_were():
    """Pictures, owners, digits, held-out questions and training rows, hashed before there were crowded scenes."""
    scenes = [generator.sample(seed) for seed in range(20)]
    facts = [(a.scene, a.question.task, a.question.text, a.question.answer, a.question.refers) for a in questions(20)]
    assert digest(scene.draw().tobytes() for scene in scenes) == "13805a07759e0426"
    assert digest(facts) == "517335a92b9dc90c"
    patches = (part.tobytes() for scene in scenes for part in (scene.patch_owners(), scene.patch_digits()))
    assert digest(patches) == "52b8d01d9507c6ad"
    data = ScenePictures(2, 4, seed=3, hide=0.5)
    rows = (
        part for i in range(8) for key, value in sorted(data[i].items()) for part in (key.encode(), then(key, value))
    )
    assert digest(rows) == "e0b7f0427e705efc"


def then(key, tensor):
    """Hidden patches had a row of their own then; they lie at their places of the packed row now."""
    tensor = tensor[PREFIX - NUM_PATCHES : PREFIX] if key == "hidden" else tensor
    return tensor.numpy().tobytes()


def test_a_seed_is_a_picture():
    assert crowded.sample(7) == crowded.sample(7) != crowded.sample(8)
    assert crowded.sample(7).draw().tobytes() == crowded.sample(7).draw().tobytes()
    assert SCENES[0].draw().size == (SIZE, SIZE) and SCENES[0].draw().mode == "RGB"
    again = [ASK[task](SCENES[0], rng(5)) for task in TASKS]
    assert again == [ASK[task](SCENES[0], rng(5)) for task in TASKS]


def test_pictures_are_crowded():
    things = [len(scene.things) for scene in SCENES]
    assert min(things) >= 13 and np.mean([15 <= n <= 22 for n in things]) > 0.97
    assert {len(scene.signs) for scene in SCENES} == {1, 2, 3}
    for scene in SCENES:
        (colour, pattern), (other, its) = scene.backgrounds
        assert colour != other and pattern != its
        assert len({s.colour for s in scene.signs}) == len({s.number for s in scene.signs}) == len(scene.signs)


def test_nothing_is_hidden():
    """Boxes lie inside the picture and at least GAP apart, and every thing owns a patch of its own."""
    for scene in SCENES:
        boxes = owner_boxes(scene)
        assert set(boxes) == {*range(len(scene.things)), *(SIGN + i for i in range(len(scene.signs)))}
        for x, y, w, h in boxes.values():
            assert w <= x <= SIZE - w and h <= y <= SIZE - h
        for (x, y, w, h), (a, b, v, u) in combinations(boxes.values(), 2):
            assert max(abs(x - a) - w - v, abs(y - b) - h - u) > GAP
        owners = scene.patch_owners()
        assert set(owners) == {BACKGROUND, *boxes}


def test_things_and_signs_show_their_colour():
    """The nearest colour word to the pixels in the middle of every object, and along every sign's upper edge."""
    names, values = list(COLOURS), np.array(list(COLOURS.values()), dtype=float)

    def nearest(pixels):
        return names[int(((values - pixels.reshape(-1, 3).mean(0)) ** 2).sum(1).argmin())]

    for scene in SCENES[:60]:
        picture = np.asarray(scene.draw(), dtype=float)
        for thing in scene.things:
            x, y = round(thing.x), round(thing.y)
            assert nearest(picture[y - 1 : y + 1, x - 1 : x + 1]) == thing.colour
        for sign in scene.signs:
            top, left = round(sign.y - scene.sign_half[1]) + 2, round(sign.x - 8)
            assert nearest(picture[top : top + 1, left : left + 16]) == sign.colour


def test_digits_can_be_read():
    """Digits stand out from their sign by brightness, and fill most of the two halves' height."""
    for scene in SCENES[:60]:
        grey = np.asarray(scene.draw().convert("L"), dtype=float)
        for sign in scene.signs:
            w, h = scene.sign_half
            inside = grey[round(sign.y - h) + 2 : round(sign.y + h) - 2, round(sign.x - w) + 2 : round(sign.x + w) - 2]
            middle = inside.shape[1] // 2
            for half in (inside[:, :middle], inside[:, middle:]):
                ink = np.abs(half - np.median(inside[0])) > 60
                assert ink.sum() >= 8 and 7 <= np.ptp(np.flatnonzero(ink.any(1))) + 1 <= 13


def test_digits_lie_on_their_sign():
    for scene in SCENES:
        digits, owners = scene.patch_digits().reshape(GRID, GRID), scene.patch_owners().reshape(GRID, GRID)
        for index, sign in enumerate(scene.signs):
            mine = np.where(owners == SIGN + index, digits, -1)
            assert {str(d) for d in mine[mine >= 0]} == set(sign.number)
        assert (owners[digits >= 0] >= SIGN).all()


def test_patch_owners_and_backgrounds_agree_with_the_pixels():
    """Backgrounds against the half-plane at each patch's centre; an object's centre belongs to it."""
    for scene in SCENES[:60]:
        owners = scene.patch_owners().reshape(GRID, GRID)
        for index, thing in enumerate(scene.things):
            assert owners[int(thing.y // PATCH), int(thing.x // PATCH)] == index or (owners == index).any()
        colours, patterns = (words.reshape(GRID, GRID) for words in scene.patch_backgrounds())
        angle, offset = scene.edge
        for row in range(GRID):
            for column in range(GRID):
                x, y = column * PATCH + PATCH / 2 - SIZE / 2, row * PATCH + PATCH / 2 - SIZE / 2
                which = scene.backgrounds[int(np.cos(angle) * x + np.sin(angle) * y > offset)]
                assert (colours[row, column], patterns[row, column]) == which
