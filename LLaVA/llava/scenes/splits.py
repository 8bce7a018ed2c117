"""The two kinds of scenes, with their questions, under the names that commands know them by.

Held-out pictures: easy scenes from seed 0, crowded ones from 1 000 000. Dialogues take seeds from 5 000 000, training
from 10 000 000, each for one kind of scene only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llava.scenes import crowded, crowded_questions, generator, questions
from llava.scenes.questions import Question


@dataclass(frozen=True)
class Split:
    """``first``: seed of the first held-out scene; ``ask``: by task, called with scene, rng and ``plain``."""

    name: str
    first: int
    sample: Callable[[int], generator.Scene | crowded.CrowdedScene]
    tasks: tuple[str, ...]
    weak: tuple[str, ...]
    strong: tuple[str, ...]
    ask: dict[str, Callable[..., Question | None]]
    without: Callable[[Question, set[int]], Question | None]
    words: Callable[[], list[str]]

    def scene(self, number: int) -> generator.Scene | crowded.CrowdedScene:
        """Held-out scene ``number``."""
        return self.sample(self.first + number)


def _split(name: str, first: int, pictures, asking) -> Split:
    return Split(
        name,
        first,
        pictures.sample,
        asking.TASKS,
        asking.WEAK,
        asking.STRONG,
        asking.ASK,
        asking.without,
        asking.words,
    )


SPLITS = {
    "easy": _split("easy", 0, generator, questions),
    "crowded": _split("crowded", 1_000_000, crowded, crowded_questions),
}


def split_of_vocabulary(words: int) -> str:
    """Which questions a model knows all words of, from how many words it knows. ValueError for other models."""
    for name, split in SPLITS.items():
        if len(split.words()) == words:
            return name
    raise ValueError(f"a vocabulary of {words} words is not that of any scenes: {', '.join(SPLITS)}")
