"""Calling the commands in this process: no start-up time, the same code."""

from __future__ import annotations

import json
from pathlib import Path

from llava.eval import model_vqa_loader

COMMON = ("--temperature", "0", "--device", "cpu")


def lines(path: Path, rows: list[dict]) -> Path:
    """Write JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def failure(capsys) -> str:
    """The one line that a wrong command ends with."""
    out, err = capsys.readouterr()
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ") and "Traceback" not in err
    return last


def ask(data, questions, answers, *more, main=model_vqa_loader.main):
    given = ["--question-file", str(questions), "--image-folder", str(data.images), "--answers-file", str(answers)]
    return main([*given, *COMMON, *more])


def answers(path, texts, **more):
    """An answers file: {question id: text}."""
    return lines(path, [{"question_id": name, "prompt": "p", "text": text, **more} for name, text in texts.items()])


def as_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def flags(**given):
    return [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
