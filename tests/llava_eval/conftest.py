"""Pictures with questions whose answers the embedded checkpoint knows, and the files that benchmarks come in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from llava.scenes.generator import sample
from llava.scenes.questions import ASK, TASKS
from no_skips import pytest_runtest_makereport  # noqa: F401

SCENES = 5


@dataclass(frozen=True)
class Data:
    """A folder of pictures, and rows ``{"question_id", "image", "text", "expected"}``."""

    images: Path
    rows: list[dict]

    def of(self, task: str) -> list[dict]:
        return [row for row in self.rows if row["question_id"].startswith(task)]


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Data:
    images = tmp_path_factory.mktemp("images")
    rows = []
    for number in range(SCENES):
        scene = sample(number)
        scene.draw().save(images / f"{number}.png")
        for task in TASKS:
            asked = ASK[task](scene, np.random.default_rng([number, 3, TASKS.index(task)]))
            if asked is not None:
                row = {"question_id": f"{task}/{number}", "image": f"{number}.png", "text": asked.text}
                rows.append(row | {"expected": asked.answer})
    return Data(images, rows)
