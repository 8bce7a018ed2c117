"""Questions about crowded scenes: like ``llava.scenes.questions``, in more wordings, and with what patches carry them.

*Weak* tasks rest on one thing, which the question names by its colour, shape or corner (exist, colour, shape, ocr,
area). *Strong* ones rest on many (count, compare, modeshape, modecolour). Counts that are compared differ by two at
least, so that a person can tell at a glance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from llava.scenes import questions as easy
from llava.scenes.crowded import CORNERS, CrowdedScene
from llava.scenes.generator import COLOURS, SHAPES, SIGN
from llava.scenes.questions import UNKNOWN_WORD, Question, pick, unique_thing

TASKS = ("exist", "colour", "shape", "ocr", "area", "count", "compare", "modeshape", "modecolour")
WEAK, STRONG = TASKS[:5], TASKS[5:]
LEAD = 2  # least difference between counts that are compared
PLURALS = {shape: f"{shape}es" if shape == "cross" else f"{shape}s" for shape in SHAPES}

WORDINGS = {
    "exist": (*easy.WORDINGS["exist"], "does the picture show a {} ?", "is a {} among the objects ?"),
    "colour": (*easy.WORDINGS["colour"], "which colour does the {} have ?", "tell me the colour of the {} ."),
    "shape": (*easy.WORDINGS["shape"], "which shape does the {} object have ?", "tell me the shape of the {} object ."),
    "ocr": (
        "what number is on the {} sign ?",
        "which number does the {} sign show ?",
        "read the number on the {} sign .",
        "tell me the number of the {} sign .",
        "what does the {} sign say ?",
    ),
    "area": (
        "what is in the {} ?",
        "what is in the {} corner ?",
        "what do you see in the {} ?",
        "what does the picture show in the {} corner ?",
    ),
    "count": (
        "how many {} are there ?",
        "how many {} can you see ?",
        "how many {} does the picture show ?",
        "count the {} .",
        "tell me how many {} you see .",
    ),
    "compare": (
        "are there more {} than {} ?",
        "do you see more {} than {} ?",
        "can you see more {} than {} ?",
        "does the picture show more {} than {} ?",
    ),
    "modeshape": (
        *easy.WORDINGS["modeshape"],
        "which shape is there most often ?",
        "which shape do most objects have ?",
        "tell me the most common shape .",
    ),
    "modecolour": (
        *easy.WORDINGS["modecolour"],
        "which colour is there most often ?",
        "which colour do most objects have ?",
        "tell me the most common object colour .",
    ),
}

# Words that a question can do without; any other word that is not understood makes it another question.
FILLERS = {"is", "are", "there", "do", "does", "you", "see", "can", "show", "a", "an", "the", "in", "on", "of"}
FILLERS |= {"picture", "what", "which", "tell", "me", "have", "among"}


def _word(task: str, rng: np.random.Generator, *subjects: str) -> str:
    wordings = WORDINGS[task]
    text = wordings[int(rng.integers(len(wordings)))].format(*subjects)
    return text.replace(" a orange", " an orange")


def exist(scene: CrowdedScene, rng: np.random.Generator, plain: bool = True) -> Question:
    """As in easy scenes, with harder negatives: colour and shape of most are both there, in other objects."""
    pairs = {(t.colour, t.shape) for t in scene.things}
    if rng.random() < 0.5:
        colour, shape = pick(rng, sorted(pairs))
        answer = "yes"
    else:
        colours, shapes = {c for c, _ in pairs}, {s for _, s in pairs}
        absent = [(c, s) for c in COLOURS for s in SHAPES if (c, s) not in pairs]
        hard = [(c, s) for c, s in absent if c in colours and s in shapes]
        colour, shape = pick(rng, hard if hard and rng.random() < 0.8 else absent)
        answer = "no"
    refers = _indices(scene, lambda t: (t.colour, t.shape) == (colour, shape))
    return Question("exist", _word("exist", rng, f"{colour} {shape}"), answer, refers)


def colour(scene: CrowdedScene, rng: np.random.Generator, plain: bool = True) -> Question | None:
    index = unique_thing(scene, rng, "shape")
    if index is None:
        return None
    thing = scene.things[index]
    return Question("colour", _word("colour", rng, thing.shape), thing.colour, (index,))


def shape(scene: CrowdedScene, rng: np.random.Generator, plain: bool = True) -> Question | None:
    index = unique_thing(scene, rng, "colour")
    if index is None:
        return None
    thing = scene.things[index]
    return Question("shape", _word("shape", rng, thing.colour), thing.shape, (index,))


def ocr(scene: CrowdedScene, rng: np.random.Generator, plain: bool = True) -> Question:
    """The number on the sign of a colour. In training one in twelve is about a sign that is not there: "none"."""
    if not plain and rng.random() < 1 / 12:
        missing = [c for c in COLOURS if c not in {s.colour for s in scene.signs}]
        return Question("ocr", _word("ocr", rng, pick(rng, missing)), "none")
    index = int(rng.integers(len(scene.signs)))
    sign = scene.signs[index]
    return Question("ocr", _word("ocr", rng, sign.colour), sign.number, (SIGN + index,))


def area(scene: CrowdedScene, rng: np.random.Generator, plain: bool = True) -> Question | None:
    """Colour and kind of the one thing in a corner."""
    there = {place: owner for place in CORNERS if (owner := scene.in_corner(place)) is not None}
    if not there:
        return None
    place = pick(rng, sorted(there))
    owner = there[place]
    if owner >= SIGN:
        answer = f"{scene.signs[owner - SIGN].colour} sign"
    else:
        answer = f"{scene.things[owner].colour} {scene.things[owner].shape}"
    return Question("area", _word("area", rng, place), answer, (owner,))


def _indices(scene: CrowdedScene, chosen: Callable) -> tuple[int, ...]:
    return tuple(i for i, t in enumerate(scene.things) if chosen(t))


def _named(key: str, value: str) -> str:
    """ "red objects", "stars"."""
    return f"{value} objects" if key == "colour" else PLURALS[value]


def count(scene: CrowdedScene, rng: np.random.Generator, plain: bool = True) -> Question | None:
    """How many of a colour or shape. Numbers up to nine, each that the scene offers as likely, 0 less."""
    key, values = pick(rng, (("colour", tuple(COLOURS)), ("shape", SHAPES)))
    groups = {value: _indices(scene, lambda t, v=value: getattr(t, key) == v) for value in values}
    numbers = sorted({len(group) for group in groups.values() if len(group) < 10})
    if numbers and numbers[0] == 0 and rng.random() < 0.6:
        numbers = numbers[1:]
    if not numbers:
        return None
    number = pick(rng, numbers)
    value = pick(rng, [v for v, group in groups.items() if len(group) == number])
    return Question("count", _word("count", rng, _named(key, value)), str(number), evidence=groups[value])


def compare(scene: CrowdedScene, rng: np.random.Generator, plain: bool = True) -> Question | None:
    """Whether there are more of one colour or shape than of another; both are there. Half yes, half no."""
    key = pick(rng, ("colour", "shape"))
    counts = Counter(getattr(t, key) for t in scene.things)
    pairs = sorted((a, b) for a in counts for b in counts if counts[a] >= counts[b] + LEAD)
    if not pairs:
        return None
    more, less = pick(rng, pairs)
    evidence = _indices(scene, lambda t: getattr(t, key) in (more, less))
    yes = rng.random() < 0.5
    subjects = (more, less) if yes else (less, more)
    text = _word("compare", rng, *(_named(key, value) for value in subjects))
    return Question("compare", text, "yes" if yes else "no", evidence=evidence)


def _mode(scene: CrowdedScene, rng: np.random.Generator, task: str, key: str) -> Question | None:
    (value, first), *rest = Counter(getattr(t, key) for t in scene.things).most_common(2)
    if rest and first < rest[0][1] + LEAD:
        return None
    return Question(task, _word(task, rng), value, evidence=tuple(range(len(scene.things))))


def modeshape(scene: CrowdedScene, rng: np.random.Generator, plain: bool = True) -> Question | None:
    return _mode(scene, rng, "modeshape", "shape")


def modecolour(scene: CrowdedScene, rng: np.random.Generator, plain: bool = True) -> Question | None:
    return _mode(scene, rng, "modecolour", "colour")


ASK: dict[str, Callable[..., Question | None]] = {
    "exist": exist,
    "colour": colour,
    "shape": shape,
    "ocr": ocr,
    "area": area,
    "count": count,
    "compare": compare,
    "modeshape": modeshape,
    "modecolour": modecolour,
}


def drop_word(question: Question, rng: np.random.Generator) -> Question:
    """The question with one word missing or not understood: the same answer without a filler, else "unknown"."""
    text = question.text.split()
    at = int(rng.integers(len(text) - 1))  # not the mark at the end
    if text[at] in FILLERS:
        put = [] if rng.random() < 0.5 else [UNKNOWN_WORD]
        return replace(question, text=" ".join(text[:at] + put + text[at + 1 :]))
    text[at] = UNKNOWN_WORD
    return Question("unknown", " ".join(text), "unknown")


def without(question: Question, gone: set[int]) -> Question | None:
    """The question as answered by somebody who cannot see the things in ``gone``; None where that is no question.

    What is counted is what is left; comparisons are not asked, as they may have come too close.
    """
    if not gone or question.task == "unknown" or question.answer == "none":
        return question
    if question.task == "count":
        left = _left(question.evidence, gone)
        return replace(question, answer=str(len(left)), evidence=left)
    if question.task in STRONG:
        return None
    left = _left(question.refers, gone)
    if question.refers and not left:
        return replace(question, answer="no" if question.task == "exist" else "unknown", refers=())
    return replace(question, refers=left)


def _left(owners: Iterable[int], gone: set[int]) -> tuple[int, ...]:
    return tuple(owner for owner in owners if owner not in gone)


def words() -> list[str]:
    """The easy vocabulary, in its order, then the words that only these questions use."""
    text = " ".join(w.replace("{}", " ") for group in WORDINGS.values() for w in group)
    return list(dict.fromkeys([*easy.words(), *PLURALS.values(), *" ".join(CORNERS).split(), *text.split()]))
