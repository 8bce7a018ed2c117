"""Training batches: several questions about one picture packed into one sequence.

Layout of a row: ``<s> USER :``, 196 picture tokens, then the questions one after another, each as
``words ASSISTANT : answer </s>``. A question sees the prefix and itself, and its positions continue the prefix, so the
result equals that of the questions asked one by one (causality keeps the picture blind to the questions).
"""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import Dataset

from llava.scenes.checkpoint import NUM_PATCHES, build_tokenizer
from llava.scenes.crowded import CrowdedScene
from llava.scenes.crowded_questions import drop_word
from llava.scenes.generator import BACKGROUND, BACKGROUNDS, COLOURS, GRID, PATCH, PATTERNS, SHAPES, SIGN, Scene
from llava.scenes.questions import Question, unknown
from llava.scenes.splits import SPLITS, Split

PREFIX = 3 + NUM_PATCHES
TEXT = {"easy": 116, "crowded": 132}  # room for the questions of one picture, in tokens
QUESTIONS = 9
EASY_SHARE = 0.3  # of the pictures that the crowded split is trained on
DROP_WORD = 0.12  # share of its questions that lack a word
# What training counts right and wrong by; questions with a word that is not understood come after these.
TASKS = {"easy": SPLITS["easy"].tasks}
TASKS["crowded"] = (*TASKS["easy"], *(f"crowded-{task}" for task in SPLITS["crowded"].tasks))
AnyScene = Scene | CrowdedScene
IGNORE = -100
GROUPS = {
    "kind": ("background", "object", "sign"),
    "shape": SHAPES,
    "pattern": PATTERNS,
    "colour": (*COLOURS, *BACKGROUNDS),
    "digit": tuple(str(d) for d in range(10)),
}


def patch_labels(scene: AnyScene) -> dict[str, np.ndarray]:
    """For each word group the index of the word that describes each patch, IGNORE where none does; each (196,)."""
    owners = scene.patch_owners()
    labels = {group: np.full(NUM_PATCHES, IGNORE, dtype=np.int64) for group in GROUPS}
    back = owners == BACKGROUND
    labels["kind"] = np.select([back, owners >= SIGN], [0, 2], default=1)
    colours, patterns = scene.patch_backgrounds()
    labels["pattern"][back] = [PATTERNS.index(pattern) for pattern in patterns[back]]
    labels["colour"][back] = [GROUPS["colour"].index(colour) for colour in colours[back]]
    for index, thing in enumerate(scene.things):
        labels["shape"][owners == index] = SHAPES.index(thing.shape)
        labels["colour"][owners == index] = GROUPS["colour"].index(thing.colour)
    for index, sign in enumerate(scene.signs):
        if sign.colour is not None:
            labels["colour"][owners == SIGN + index] = GROUPS["colour"].index(sign.colour)
    labels["digit"] = scene.patch_digits()
    labels["digit"][labels["digit"] < 0] = IGNORE
    return labels


def centres(scene: AnyScene) -> np.ndarray:
    """1.0 where an object's centre lies in the patch; float32 (196,)."""
    out = np.zeros((GRID, GRID), dtype=np.float32)
    for thing in scene.things:
        out[int(thing.y // PATCH), int(thing.x // PATCH)] = 1
    return out.ravel()


def hide_things(scene: AnyScene, rng: np.random.Generator) -> tuple[set[int], np.ndarray]:
    """Which things are gone, and the patches that vanish, bool (196,).

    In a third of the pictures about half of the things are gone, with all their patches. Everything else, the
    background too, loses a part of its patches, as it does when a picture is pruned; an object keeps at least one, a
    sign keeps all.
    """
    cover, owners = scene.patch_cover(), scene.patch_owners()
    gone = {owner for owner in cover if rng.random() < 0.5} if rng.random() < 1 / 3 else set()
    hidden = (owners == BACKGROUND) & (rng.random(NUM_PATCHES) < rng.uniform(0, 0.95))
    shown = np.zeros(NUM_PATCHES, dtype=bool)
    for owner, share in cover.items():
        if owner in gone:
            hidden |= share > 0
        elif owner >= SIGN:
            shown |= share > 0
        else:
            places = np.flatnonzero(owners == owner)
            hidden[places] |= rng.random(len(places)) < rng.uniform(0, 0.9)
            shown[rng.choice(places)] = True
    return gone, hidden & ~shown


def pixels(scene: AnyScene) -> torch.Tensor:
    """The picture as the processor hands it to the model: float32 (3, 112, 112) in -1..1."""
    return torch.from_numpy(np.array(scene.draw(), dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1


class ScenePictures(Dataset):
    """Pictures of a run with their questions, in the order they are trained on: always the same for the same seed.

    Item number ``step * pictures + i`` is the i-th picture of that step. Pictures are drawn afresh for every step;
    training seeds start at 10 000 000, evaluation uses the small ones.

    Args:
        steps, pictures: of the run, and of each step.
        shares: relative frequencies of the tasks, 1 for those not named.
        later: (step, shares) from which others are in force.
        ask: with questions; without, only what stage A needs.
        hide: share of the pictures in which patches vanish after the first layers: they are in ``hidden``, as wide as
            the packed row, and questions about things that are gone are answered as if they never were.
        split: the scenes: easy, or crowded with a share of easy ones.
    """

    def __init__(
        self,
        steps: int,
        pictures: int,
        seed: int,
        shares: dict[str, float] | None = None,
        later: tuple[int, dict[str, float]] | None = None,
        ask: bool = True,
        hide: float = 0.0,
        split: str = "easy",
    ):
        self.split, self.steps, self.pictures, self.ask, self.hide = split, steps, pictures, ask, hide
        self.first = 10_000_000 + seed * 1_000_000 * pictures
        turn, others = later or (steps, {})
        self.turn, self.early, self.late = turn * pictures, shares or {}, others
        self.tokenizer, self.names = build_tokenizer(split), TASKS[split]

    def __len__(self) -> int:
        return self.steps * self.pictures

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        seed, shares = self.first + index, self.early if index < self.turn else self.late
        easy = self.split == "easy" or np.random.default_rng([seed, 12]).random() < EASY_SHARE
        return self._row(seed, SPLITS["easy" if easy else "crowded"], shares)

    def _row(self, seed: int, kind: Split, shares: dict[str, float]) -> dict[str, torch.Tensor]:
        scene, rng = kind.sample(seed), np.random.default_rng([seed, 2])
        row = {"pixels": pixels(scene), "centres": torch.from_numpy(centres(scene))}
        row |= {f"patch_{group}": torch.from_numpy(value) for group, value in patch_labels(scene).items()}
        if not self.ask:
            return row
        gone, hidden = hide_things(scene, rng) if rng.random() < self.hide else (set(), np.zeros(NUM_PATCHES, bool))
        row["hidden"] = torch.from_numpy(_widened(hidden, TEXT[self.split]))
        return row | self._pack(scene, kind, self._questions(scene, kind, gone, rng, shares))

    def _questions(
        self, scene: AnyScene, kind: Split, gone: set[int], rng: np.random.Generator, shares: dict[str, float]
    ) -> list[Question]:
        questions, weights = [], _weights(shares, kind.tasks)
        while len(questions) < QUESTIONS:
            if rng.random() < 0.04:
                questions.append(unknown(scene, rng))
                continue
            question = kind.ask[kind.tasks[rng.choice(len(kind.tasks), p=weights)]](scene, rng, plain=False)
            question = None if question is None else kind.without(question, gone)
            if question is None:
                continue
            if self.split == "crowded" and rng.random() < DROP_WORD:
                question = drop_word(question, rng)
            questions.append(question)
        return questions

    def _pack(self, scene: AnyScene, kind: Split, questions: list[Question]) -> dict[str, torch.Tensor]:
        """Token rows of length TEXT; ``segment``: the question of a token (-1 padding), ``prompt``: its prompt part."""
        room, prefix = TEXT[self.split], "" if kind.name == "easy" else f"{kind.name}-"
        ids = np.zeros(room, dtype=np.int64)
        segment = np.full(room, -1, dtype=np.int64)
        position = np.zeros(room, dtype=np.int64)
        prompt = np.zeros(room, dtype=bool)
        target = np.full(room, IGNORE, dtype=np.int64)
        task = np.full(QUESTIONS, -1, dtype=np.int64)
        refers = np.zeros((QUESTIONS, NUM_PATCHES), dtype=bool)
        owners, end = scene.patch_owners(), 0
        for index, question in enumerate(questions):
            asked = self.tokenizer.encode(f"{question.text} ASSISTANT:", add_special_tokens=False)
            answer = self.tokenizer.encode(question.answer, add_special_tokens=False) + [self.tokenizer.eos_token_id]
            length = len(asked) + len(answer)
            if end + length > room:
                break
            here = slice(end, end + length)
            ids[here], segment[here], position[here] = asked + answer, index, PREFIX + np.arange(length)
            prompt[end : end + len(asked)] = True
            target[end + len(asked) - 1 : end + length - 1] = answer
            name = prefix + question.task
            task[index] = self.names.index(name) if name in self.names else len(self.names)
            refers[index] = np.isin(owners, question.refers)
            end += length
        arrays = {"ids": ids, "segment": segment, "position": position, "prompt": prompt, "target": target}
        arrays |= {"task": task, "refers": refers}
        return {key: torch.from_numpy(value) for key, value in arrays.items()}


def _widened(hidden: np.ndarray, room: int) -> np.ndarray:
    """Patches (196,) at their places of a packed row, bool (PREFIX + room,).

    Here, not in the loss: what inductor makes of padding booleans reads before the first one, and where a worker's
    batch begins a page that ends the process (torch 2.13, CPU).
    """
    return np.pad(hidden, (PREFIX - NUM_PATCHES, room))


def _weights(shares: dict[str, float], tasks: tuple[str, ...]) -> np.ndarray:
    weights = np.array([shares.get(task, 1.0) for task in tasks])
    return weights / weights.sum()


def attention_mask(segment: torch.Tensor) -> torch.Tensor:
    """Block mask of packed rows. ``segment`` (B, TEXT) -> bool (B, 1, PREFIX+TEXT, PREFIX+TEXT), True = may attend."""
    batch = segment.shape[0]
    own = torch.cat([segment.new_full((batch, PREFIX), -2), segment], 1)
    causal = torch.ones(own.shape[1], own.shape[1], dtype=torch.bool, device=own.device).tril()
    same = (own[:, :, None] == own[:, None, :]) | (own == -2)[:, None, :]
    return (causal & same)[:, None]
