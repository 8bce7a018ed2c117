"""What an answer depends on beside the question, so that a journal is only used by the model that wrote it."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "transformers", "lmms-eval", "mob")
_ASIDE = ("resume", "log_retained_patches", "save_pictures")  # change where things go, not what is answered


def fingerprint(model: Any, options: dict[str, Any]) -> str:
    """SHA-256 over versions, options, pruning, conversation, device and checkpoint (its config, sizes of its files)."""
    facts = {
        "versions": [_version(name) for name in _PACKAGES],
        "model": type(model).__name__,
        "options": {name: value for name, value in options.items() if name not in _ASIDE},
        "logged": bool(options.get("log_retained_patches")),  # an answer without its record is no use to a log
        "replay": _digest(options.get("replay")),
        "mob": model.mob,
        "conversation": model.conv_template,
        "device": model.device.type,
        "dtype": str(model.model.dtype),
        "batch": model.batch_size,
        "checkpoint": _files(Path(model.folder)),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:  # run from its folder
        return None


def _files(folder: Path) -> list[Any]:
    weights = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
    settings = sorted(folder.glob("*.json"))
    return [(file.name, file.stat().st_size) for file in weights] + [(one.name, _digest(one)) for one in settings]


def _digest(path: str | Path | None) -> str | None:
    """Of a file, or of all JSON lines in a folder."""
    if path is None:
        return None
    path = Path(path).expanduser()
    files = sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()
