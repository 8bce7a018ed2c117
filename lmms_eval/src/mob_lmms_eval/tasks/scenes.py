"""Questions about drawn scenes as a dataset of lmms-eval. A picture is drawn from its seed when it is asked for."""

from __future__ import annotations

from typing import Any

from datasets import Dataset, DatasetDict
from lmms_eval.api.task import ConfigurableTask
from PIL import Image

from llava.scenes.evaluate import questions
from llava.scenes.generator import BACKGROUNDS, COLOURS, PATTERNS, SHAPES
from llava.scenes.splits import SPLITS

CHOICES = {
    "exist": ("yes", "no"),
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "pattern": PATTERNS,
    "bgcolour": tuple(BACKGROUNDS),
    "modeshape": SHAPES,
    "modecolour": tuple(COLOURS),
}


class Scenes(ConfigurableTask):
    """A task whose documents are made here. ``dataset_kwargs``: questions of each kind; ``split``: easy or crowded;
    ``closed``: only such with a list of choices."""

    def __init__(self, config: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(config={key: value for key, value in config.items() if key != "class"}, **kwargs)

    def download(self, dataset_kwargs: dict[str, Any] | None = None) -> None:
        wanted = dataset_kwargs or {}
        split, closed = wanted.get("split", "easy"), wanted.get("closed", False)
        asked = questions(wanted.get("questions", 50), split)
        rows = [
            {
                "scene": one.scene,
                "kind": one.question.task,
                "question": one.question.text,
                "answer": one.question.answer,
                "choices": list(CHOICES.get(one.question.task, ())),
            }
            for one in asked
            if not closed or one.question.task in CHOICES
        ]
        for row in rows:
            row["right"] = row["choices"].index(row["answer"]) if row["choices"] else -1
            if split != "easy":  # logs of easy scenes have no such field
                row["split"] = split
        self.dataset = DatasetDict({"test": Dataset.from_list(rows)})
        self.dataset_no_image = self.dataset


def doc_to_visual(doc: dict[str, Any]) -> list[Image.Image]:
    return [SPLITS[doc.get("split", "easy")].scene(doc["scene"]).draw()]


def doc_to_text(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> str:
    return doc["question"]


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Right or wrong, under the question's own kind and over all of them."""
    right = float(results[0].strip() == doc["answer"])
    return {"accuracy": right, doc["kind"]: right}
