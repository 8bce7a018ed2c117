"""Questions about a scene, with their answers and the things that they refer to.

Coupling follows the paper's terms: *weak* tasks are decided by few patches (exist, colour, shape, ocr), *strong* ones
by many (pattern, bgcolour, modeshape, modecolour); counting is a control. A question without an answer in this scene
is not asked: every function returns None then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from llava.scenes.generator import BACKGROUND, BACKGROUNDS, COLOURS, PATTERNS, SHAPES, SIGN, Scene

TASKS = ("exist", "colour", "shape", "ocr", "pattern", "bgcolour", "modeshape", "modecolour", "count")
WEAK, STRONG = TASKS[:4], TASKS[4:8]
UNKNOWN_WORD = "<unk>"


@dataclass(frozen=True)
class Question:
    """``refers``: owners (object indices or SIGN) whose patches hold the answer; empty where no few patches do.

    ``evidence``: in strong tasks, the owners (object indices or BACKGROUND) whose patches the answer rests on.
    """

    task: str
    text: str
    answer: str
    refers: tuple[int, ...] = ()
    evidence: tuple[int, ...] = ()

    def answer_patches(self, owners: np.ndarray) -> np.ndarray:
        """Which patches carry the answer, bool (196,), none for a no; ``owners`` from ``Scene.patch_owners``."""
        return np.isin(owners, self.refers or self.evidence)


WORDINGS = {
    "exist": ("is there a {} ?", "do you see a {} ?", "can you see a {} in the picture ?"),
    "colour": ("what colour is the {} ?", "what is the colour of the {} ?", "which colour is the {} ?"),
    "shape": ("what shape is the {} object ?", "what is the shape of the {} object ?", "which shape is {} ?"),
    "ocr": ("what number is on the sign ?", "which number does the sign show ?", "read the number on the sign ."),
    "pattern": ("what is the background pattern ?", "which pattern does the background have ?"),
    "bgcolour": ("what colour is the background ?", "what is the background colour ?"),
    "modeshape": ("which shape is most common ?", "what is the most common shape ?"),
    "modecolour": ("which colour is most common among the objects ?", "what is the most common object colour ?"),
    "count": ("how many objects are there ?", "how many objects can you see ?", "count the objects ."),
}


def _word(task: str, rng: np.random.Generator, plain: bool, subject: str = "") -> str:
    """One wording of a task; ``plain`` takes the first, which evaluation uses."""
    wordings = WORDINGS[task]
    text = wordings[0 if plain else int(rng.integers(len(wordings)))].format(subject)
    return text.replace(" a orange", " an orange")


def pick(rng: np.random.Generator, values):
    return values[int(rng.integers(len(values)))]


def exist(scene: Scene, rng: np.random.Generator, plain: bool = True) -> Question | None:
    """Half yes, half no. A no has the right colour or the right shape elsewhere in four cases of five.

    Not plain: a third asks for one attribute only, the easier question that gets training off the prior.
    """
    if not plain and rng.random() < 0.33:
        return _exist_one_attribute(scene, rng)
    pairs = {(t.colour, t.shape) for t in scene.things}
    if rng.random() < 0.5:
        colour, shape = pick(rng, sorted(pairs))
        refers = tuple(i for i, t in enumerate(scene.things) if (t.colour, t.shape) == (colour, shape))
        return Question("exist", _word("exist", rng, plain, f"{colour} {shape}"), "yes", refers)
    absent = [(c, s) for c in COLOURS for s in SHAPES if (c, s) not in pairs]
    colours, shapes = {c for c, _ in pairs}, {s for _, s in pairs}
    near = [(c, s) for c, s in absent if c in colours or s in shapes]
    colour, shape = pick(rng, near if rng.random() < 0.8 else absent)
    return Question("exist", _word("exist", rng, plain, f"{colour} {shape}"), "no")


def _exist_one_attribute(scene: Scene, rng: np.random.Generator) -> Question:
    kind, values = pick(rng, (("colour", tuple(COLOURS)), ("shape", SHAPES)))
    value = str(pick(rng, values))
    there = [getattr(t, kind) for t in scene.things]
    if rng.random() < 0.5:
        value = pick(rng, there)
    refers = tuple(i for i, v in enumerate(there) if v == value)
    subject = f"{value} object" if kind == "colour" else value
    return Question("exist", _word("exist", rng, False, subject), "yes" if refers else "no", refers)


def unique_thing(scene: Scene, rng: np.random.Generator, key: str) -> int | None:
    """Index of an object whose ``key`` no other object shares, or None."""
    counts = Counter(getattr(t, key) for t in scene.things)
    single = [i for i, t in enumerate(scene.things) if counts[getattr(t, key)] == 1]
    return pick(rng, single) if single else None


def colour(scene: Scene, rng: np.random.Generator, plain: bool = True) -> Question | None:
    index = unique_thing(scene, rng, "shape")
    if index is None:
        return None
    thing = scene.things[index]
    return Question("colour", _word("colour", rng, plain, thing.shape), thing.colour, (index,))


def shape(scene: Scene, rng: np.random.Generator, plain: bool = True) -> Question | None:
    index = unique_thing(scene, rng, "colour")
    if index is None:
        return None
    thing = scene.things[index]
    return Question("shape", _word("shape", rng, plain, thing.colour), thing.shape, (index,))


def ocr(scene: Scene, rng: np.random.Generator, plain: bool = True) -> Question | None:
    if scene.number is None:
        # Without a sign the honest answer is "none": taught, but not part of the score.
        return None if plain or rng.random() < 0.6 else Question("ocr", _word("ocr", rng, plain), "none")
    return Question("ocr", _word("ocr", rng, plain), scene.number, (SIGN,))


def _all_things(scene: Scene) -> tuple[int, ...]:
    return tuple(range(len(scene.things)))


def pattern(scene: Scene, rng: np.random.Generator, plain: bool = True) -> Question | None:
    return Question("pattern", _word("pattern", rng, plain), scene.pattern, evidence=(BACKGROUND,))


def bgcolour(scene: Scene, rng: np.random.Generator, plain: bool = True) -> Question | None:
    return Question("bgcolour", _word("bgcolour", rng, plain), scene.background, evidence=(BACKGROUND,))


def _mode(scene: Scene, rng: np.random.Generator, plain: bool, task: str, key: str) -> Question | None:
    counts = Counter(getattr(t, key) for t in scene.things).most_common(2)
    if len(counts) > 1 and counts[0][1] == counts[1][1]:
        return None
    return Question(task, _word(task, rng, plain), counts[0][0], evidence=_all_things(scene))


def modeshape(scene: Scene, rng: np.random.Generator, plain: bool = True) -> Question | None:
    return _mode(scene, rng, plain, "modeshape", "shape")


def modecolour(scene: Scene, rng: np.random.Generator, plain: bool = True) -> Question | None:
    return _mode(scene, rng, plain, "modecolour", "colour")


def count(scene: Scene, rng: np.random.Generator, plain: bool = True) -> Question | None:
    return Question("count", _word("count", rng, plain), str(len(scene.things)), evidence=_all_things(scene))


ASK: dict[str, Callable[..., Question | None]] = {
    "exist": exist,
    "colour": colour,
    "shape": shape,
    "ocr": ocr,
    "pattern": pattern,
    "bgcolour": bgcolour,
    "modeshape": modeshape,
    "modecolour": modecolour,
    "count": count,
}


def unknown(scene: Scene, rng: np.random.Generator) -> Question:
    """A question with a word that the tokenizer does not have: the right answer is "unknown", not a guess."""
    task = pick(rng, ("exist", "colour", "shape"))
    values = tuple(COLOURS) if rng.random() < 0.5 else SHAPES
    subject = UNKNOWN_WORD if task != "exist" or rng.random() < 0.5 else f"{pick(rng, values)} {UNKNOWN_WORD}"
    return Question("unknown", _word(task, rng, False, subject), "unknown")


WITHOUT_EVIDENCE = {"exist": "no", "colour": "unknown", "shape": "unknown", "ocr": "unknown"}


def without(question: Question, gone: set[int]) -> Question | None:
    """The question as it is answered by somebody who cannot see the things in ``gone``; None where that is no question.

    Counting and most-common questions are about all things, so they are not asked then.
    """
    if not gone or question.task in ("pattern", "bgcolour", "unknown"):
        return question
    if question.task in STRONG or question.task == "count":
        return None
    left = tuple(owner for owner in question.refers if owner not in gone)
    if question.refers and not left:
        return replace(question, answer=WITHOUT_EVIDENCE[question.task], refers=())
    return replace(question, refers=left)


def words() -> list[str]:
    """Every word that questions and answers use, in a fixed order; the tokenizer's vocabulary."""
    text = " ".join(w.replace("{}", " ") for group in WORDINGS.values() for w in group)
    answers = ["yes", "no", "none", "unknown", *SHAPES, *COLOURS, *BACKGROUNDS, *PATTERNS, *map(str, range(10))]
    kinds = ["background", "object", "objects", "sign", "user", "assistant", ":", ",", "the", "a", "an"]
    return list(dict.fromkeys([*kinds, *answers, *text.split()]))
