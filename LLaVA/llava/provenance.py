"""Result files, and where their numbers come from: versions, hardware, command, commit, weights."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

_PACKAGES = ("torch", "transformers", "tokenizers", "accelerate", "numpy", "pillow", "mob", "llava")


def provenance(model_path: str | Path | None = None) -> dict:
    """JSON-ready facts about this run; ``model_path``: a folder whose safetensors files are hashed."""
    return {
        "command": _command(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "versions": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "weights_sha256": _hash(model_path) if model_path else None,
    }


def write_result(path: Path, result: dict) -> None:
    """A result file: the innermost lists and objects stand on one line each, so that a diff of two can be read.

    Raises: ValueError where a number is not finite: such a file would not be JSON.
    """
    text = json.dumps(result, indent=1, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_INNERMOST.sub(lambda found: re.sub(r"\s*\n\s*", " ", found.group()), text) + "\n")


_STRING = r'"(?:[^"\\]|\\.)*"'
_INNERMOST = re.compile(rf'\[(?:{_STRING}|[^\[\]{{}}"])*\]|\{{(?:{_STRING}|[^\[\]{{}}"])*\}}')


def _command() -> str:
    """What was typed, without this machine's folders."""
    first, *rest = sys.orig_argv
    return " ".join([Path(first).name, *map(_portable, rest)])


def _portable(word: str) -> str:
    """A path, also one behind ``--flag=``, from here on, or its last part where it lies elsewhere."""
    flag, equals, value = word.rpartition("=")
    path = Path(value)
    if not path.is_absolute():
        return word
    return f"{flag}{equals}{path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path.name}"


def _git(*words: str) -> str | None:
    try:
        here = Path(__file__).parent
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None  # installed without its repository


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _hash(folder: str | Path) -> str | None:
    files = sorted(Path(folder).glob("*.safetensors"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest() if files else None
