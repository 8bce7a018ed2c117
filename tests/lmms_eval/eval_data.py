"""Small local copies of the datasets that lmms-eval's tasks ask for, in their schema, in a working folder.

``load_dataset("lmms-lab-encoder/POPE")`` takes the folder of that name in the working folder before it asks the hub.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Image, Sequence, Value
from PIL import Image as Pillow

TEXT, NUMBER = Value("string"), Value("int64")
LETTERS = "ABCD"


def picture(number: int) -> Pillow.Image:
    """Noise in blocks; every number has another size and content."""
    rng = np.random.default_rng(number)
    width, height = 40 + 7 * (number % 5), 30 + 11 * (number % 4)
    small = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Pillow.fromarray(small).resize((width, height), Pillow.Resampling.NEAREST)


def scienceqa(count: int) -> list[dict]:
    rows = []
    for i in range(count):
        choices = [f"star {i}", "moon", "sun"][: 2 + i % 2]
        rows.append(
            {
                "image": None if i == 2 else picture(i),  # a few of the real ones have no picture
                "question": f"Which is {i}?",
                "choices": choices,
                "answer": i % 2,
                "hint": "a hint" if i % 2 else "",
            }
        )
    return rows


def mme(count: int) -> list[dict]:
    return [
        {
            "question_id": f"existence/{i // 2}.png",
            "image": picture(i // 2),
            "question": f"Is there a star {i % 2}? Please answer yes or no.",
            "answer": ("Yes", "No")[i % 2],
            "category": ("existence", "code_reasoning")[i // 2 % 2],
        }
        for i in range(count)
    ]


def pope(count: int) -> list[dict]:
    return [
        {
            "id": str(i),
            "question_id": str(i),
            "question": f"Is there a person {i} in the image?",
            "answer": ("yes", "no")[i % 2],
            "image_source": f"COCO_{i}",
            "image": picture(i),
            "category": ("random", "popular", "adversarial")[i % 3],
        }
        for i in range(count)
    ]


def gqa(count: int) -> list[dict]:
    return [{"id": str(i), "imageId": f"n{i}", "question": f"What is {i}?", "answer": "star"} for i in range(count)]


def gqa_images(count: int) -> list[dict]:
    return [{"id": f"n{i}", "image": picture(i)} for i in range(count)]


def textvqa(count: int) -> list[dict]:
    return [
        {
            "image_id": str(i),
            "question_id": i,
            "question": f"what is written {i}?",
            "image": picture(i),
            "answers": ["star"] * 10,
            "ocr_tokens": ["star"],
        }
        for i in range(count)
    ]


def vizwiz(count: int) -> list[dict]:
    return [
        {
            "question_id": f"VizWiz_val_{i}",
            "image": picture(i),
            "question": f"what is this {i}?",
            "answers": ["unanswerable"] * 10,
            "category": "other",
        }
        for i in range(count)
    ]


def vqav2(count: int) -> list[dict]:
    answers = [{"answer": "yes", "answer_confidence": "yes", "answer_id": j} for j in range(10)]
    return [
        {
            "question_type": "is",
            "multiple_choice_answer": "yes",
            "answers": answers,
            "image_id": i,
            "answer_type": "yes/no",
            "question_id": i,
            "question": f"Is it {i}?",
            "image": picture(i),
        }
        for i in range(count)
    ]


def ocrbench(count: int) -> list[dict]:
    return [
        {
            "dataset": "IIIT5K",
            "question": "what is written in the image?",
            "question_type": "Regular Text Recognition",
            "answer": ["star"],
            "image": picture(i),
        }
        for i in range(count)
    ]


def mmbench(count: int) -> list[dict]:
    return [
        {
            "index": i,
            "question": f"Which one is {i}?",
            "hint": "nan" if i % 2 else "look well",
            "A": "star",
            "B": "moon",
            "C": "nan",
            "D": "nan",
            "answer": "AB"[i % 2],
            "category": "attribute_recognition",
            "image": picture(i),
            "source": "own",
            "L2-category": "finegrained_perception (instance-level)",
            "comment": "nan",
            "split": "dev",
        }
        for i in range(count)
    ]


def _features(row: dict) -> Features:
    answer = {"answer": TEXT, "answer_confidence": TEXT, "answer_id": NUMBER}
    kinds = {}
    for key, value in row.items():
        if key == "image":
            kinds[key] = Image()
        elif isinstance(value, list):
            kinds[key] = [answer] if isinstance(value[0], dict) else Sequence(TEXT)
        else:
            kinds[key] = NUMBER if isinstance(value, int) else TEXT
    return Features(kinds)


# dataset -> (config, split, rows)
LAYOUT = {
    "lmms-lab-encoder/ScienceQA": [("ScienceQA-IMG", "test", scienceqa)],
    "lmms-lab-encoder/MME": [("default", "test", mme)],
    "lmms-lab-encoder/POPE": [("default", "test", pope)],
    "lmms-lab-encoder/GQA": [
        ("testdev_balanced_instructions", "testdev", gqa),
        ("testdev_balanced_images", "testdev", gqa_images),
    ],
    "lmms-lab-encoder/textvqa": [("default", "validation", textvqa)],
    "lmms-lab-encoder/VizWiz-VQA": [("default", "val", vizwiz)],
    "lmms-lab-encoder/VQAv2": [("default", "validation", vqav2)],
    "lmms-lab-encoder/MMBench": [("en", "dev", mmbench)],
    "echo840/OCRBench": [("default", "test", ocrbench)],
}


def write(root: Path, count: int = 4) -> Path:
    """All datasets below ``root``, with ``count`` documents each."""
    for name, parts in LAYOUT.items():
        lines = ["---", "configs:"]
        for config, split, rows in parts:
            made = rows(count)
            file = root / name / config / f"{split}-00000-of-00001.parquet"
            file.parent.mkdir(parents=True)
            Dataset.from_list(made, features=_features(made[0])).to_parquet(file)
            lines += [f"- config_name: {config}", "  data_files:", f"  - split: {split}"]
            lines += [f"    path: {config}/{split}-*"]
        (root / name / "README.md").write_text("\n".join([*lines, "---", ""]))
    return root
