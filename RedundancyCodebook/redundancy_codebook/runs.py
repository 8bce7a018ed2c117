"""A folder of measurements that grows picture by picture and goes on where it was stopped.

``run.json`` says what is measured, ``measurements.jsonl`` has one line for each picture, ``features.bin`` the tokens of
all tested patches, one after another, as raw numbers. A picture counts once its line is complete: features are written
first, and whatever was cut short is cut off again at the next start. A run that was killed ends with the same bytes as
one that was not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from redundancy_codebook.divergence import DIVERGENCES
from redundancy_codebook.experiment import LEVELS

MANIFEST, LINES, FEATURES, TABLE = "run.json", "measurements.jsonl", "features.bin", "measurements.parquet"
FORMAT = "redundancy-run/1"
VALUES = ("p_top1", *(f"{level}_{kind}" for level in LEVELS for kind in DIVERGENCES))
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_DIGITS = 9  # enough for a float32 to come back as it was


@dataclass(frozen=True)
class Run:
    """A folder of measurements, for reading. ``lines``: one dict for each picture, in order."""

    folder: Path
    manifest: dict[str, Any]
    lines: list[dict[str, Any]]

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.manifest["features_dtype"]]

    @property
    def D(self) -> int:
        return self.manifest["identity"]["D"]

    @property
    def tested(self) -> int:
        """Patches measured so far."""
        return sum(len(line["indices"]) for line in self.lines)

    @cached_property
    def picture_of(self) -> Tensor:
        """int64 (tested,): number of the picture of each tested patch."""
        return torch.tensor([i for i, line in enumerate(self.lines) for _ in line["indices"]], dtype=torch.long)

    def values(self, name: str) -> Tensor:
        """float64 (tested,) of one of ``VALUES``, in the order of the lines."""
        return torch.tensor([value for line in self.lines for value in line[name]], dtype=torch.float64)

    def score(self, divergence: str = DIVERGENCES[0], local: float = 1.0, everywhere: float = 16.0) -> Tensor:
        """J = local * D_local + everywhere * D_global of each tested patch."""
        if divergence not in DIVERGENCES:
            raise ValueError(f"divergence={divergence!r}: use one of {', '.join(DIVERGENCES)}")
        return local * self.values(f"local_{divergence}") + everywhere * self.values(f"global_{divergence}")

    def features(self) -> Tensor:
        """(tested, D), mapped from the file: rows are read when they are used."""
        size = self.tested * self.D
        file = self.folder / FEATURES
        if not size:
            raise ValueError(f"{self.folder} has no measurements yet: run python -m redundancy_codebook measure first")
        return torch.from_file(str(file), shared=False, size=size, dtype=self.dtype).view(self.tested, self.D)


def open_run(folder: str | Path) -> Run:
    """What is complete in a run's folder. ValueError where there is none, or it is damaged."""
    folder = Path(folder).expanduser()
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        raise ValueError(f"{folder} holds no run ({MANIFEST} is missing): give the --out of measure") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder / MANIFEST} cannot be read ({error}): measure again into another folder") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{folder / MANIFEST} is not of format {FORMAT}: measure again into another folder")
    lines, _ = _complete(folder, manifest)
    return Run(folder, manifest, lines)


def _complete(folder: Path, manifest: dict[str, Any]) -> tuple[list[dict[str, Any]], int]:
    """The lines whose features are there too, and how many bytes they take."""
    file, features = folder / LINES, folder / FEATURES
    content = file.read_bytes() if file.exists() else b""
    room = features.stat().st_size if features.exists() else 0
    width = manifest["identity"]["D"] * DTYPES[manifest["features_dtype"]].itemsize
    lines, end = [], 0
    for raw in content.splitlines(keepends=True):
        try:
            line = json.loads(raw) if raw.endswith(b"\n") else None
        except (UnicodeDecodeError, json.JSONDecodeError):
            line = None
        if not isinstance(line, dict) or "indices" not in line or room < len(line["indices"]) * width:
            break
        room -= len(line["indices"]) * width
        lines.append(line)
        end += len(raw)
    return lines, end


class Writer:
    """Appends pictures to a run; see ``writing``."""

    def __init__(self, run: Run, lines: IO[bytes], features: IO[bytes]) -> None:
        self.run, self._lines, self._features = run, lines, features

    @property
    def done(self) -> int:
        return len(self.run.lines)

    def add(self, about: dict[str, Any], indices: list[int], values: dict[str, Tensor], features: Tensor) -> None:
        """One picture. ``about``: its name, domain and the like; ``features``: (n, D) of the tested patches;
        ``values``: (n,) each."""
        line: dict[str, Any] = {**about, "indices": indices}
        line |= {key: [float(f"{v:.{_DIGITS}g}") for v in value.tolist()] for key, value in values.items()}
        rows = features.detach().to("cpu", self.run.dtype).contiguous()
        self._features.write(rows.flatten().view(torch.uint8).numpy().tobytes())
        _flush(self._features)
        self._lines.write(json.dumps(line).encode() + b"\n")
        _flush(self._lines)
        self.run.lines.append(line)


@contextmanager
def writing(folder: str | Path, manifest: dict[str, Any]) -> Iterator[Writer]:
    """Start a run, or go on with the one in the folder.

    Raises:
        ValueError: the folder holds a run with other settings, or another process writes to it.
    """
    folder = Path(folder).expanduser()
    manifest = json.loads(json.dumps({"format": FORMAT, **manifest}))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            _lock(lock, folder)
            if (folder / MANIFEST).exists():
                run = open_run(folder)
                _check_same(run.manifest, manifest, folder)
            else:
                _write_whole(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
                run = Run(folder, manifest, [])
            with (folder / LINES).open("ab") as lines, (folder / FEATURES).open("ab") as features:
                lines.truncate(_complete(folder, manifest)[1])
                features.truncate(run.tested * run.D * run.dtype.itemsize)
                yield Writer(run, lines, features)
    except OSError as error:
        raise ValueError(f"cannot write to {folder} ({error.strerror or error}): choose another --out") from error


def _check_same(old: dict[str, Any], new: dict[str, Any], folder: Path) -> None:
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key):
            raise ValueError(
                f"{folder} holds a run with another {key} ({_short(old.get(key))}, now {_short(new.get(key))}): give "
                "the same settings to go on with it, or another --out"
            )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else text[:57] + "..."


def _lock(file: IO[str], folder: Path) -> None:
    """Held until the process ends, however it ends."""
    try:
        import fcntl
    except ImportError:
        return  # not on Windows
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"another process is measuring into {folder}: wait for it, or give another --out") from None


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _write_whole(file: Path, text: str) -> None:
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    partial.write_text(text)
    os.replace(partial, file)


def write_table(run: Run) -> Path | None:
    """The measurements as Parquet, one row for each tested patch; None where pyarrow is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        return None
    names = [line["picture"] for line in run.lines]
    columns: dict[str, Any] = {
        "picture": [names[i] for i in run.picture_of.tolist()],
        "domain": [run.lines[i]["domain"] for i in run.picture_of.tolist()],
        "index": [index for line in run.lines for index in line["indices"]],
    }
    extra = [key for key in (run.lines[0] if run.lines else {}) if key in (*VALUES, "cls_cosine")]
    columns |= {key: run.values(key).tolist() for key in extra}
    target = run.folder / TABLE
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    pyarrow.parquet.write_table(pyarrow.table(columns), partial)
    os.replace(partial, target)
    return target
