"""Where a number comes from: versions, hardware, command, commit, weights. Goes into every result file."""

from __future__ import annotations

import hashlib
import platform
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


def _command() -> str:
    """What was typed, without this machine's folders."""
    first, *rest = sys.orig_argv
    here = f"{Path.cwd()}/"
    return " ".join([Path(first).name, *(word.removeprefix(here) for word in rest)])


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
