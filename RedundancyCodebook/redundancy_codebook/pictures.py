"""Where pictures come from: files and folders, a COCO annotation file, or the scenes of the embedded checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mob.media import load_image

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
TRAINING_SCENES = 10_000_000  # seeds from here on; evaluation uses the small ones


@dataclass(frozen=True)
class Picture:
    """``name`` is unique within a run; ``domain`` groups pictures in tables; ``load`` reads it (ImageError)."""

    name: str
    domain: str
    load: Callable[[], Image.Image]


def from_files(sources: Sequence[str]) -> list[Picture]:
    """Files, and all pictures in folders, sorted by path; the domain is the folder that a picture lies in.

    Raises:
        ValueError: a source that is not there, or no picture at all.
    """
    out: dict[str, Picture] = {}
    for source in sources:
        root = Path(source).expanduser()
        if not root.exists():
            raise ValueError(f"there is no file or folder {source}: check the path")
        files = sorted(f for f in root.rglob("*") if f.suffix.lower() in SUFFIXES) if root.is_dir() else [root]
        if not files:
            raise ValueError(f"{source} has no pictures in it ({', '.join(sorted(SUFFIXES))})")
        for file in files:
            out.setdefault(str(file), Picture(str(file), file.parent.name, _reader(file)))
    return list(out.values())


def from_coco(annotations: str, root: str, split: str = "train") -> list[Picture]:
    """The pictures of one split of a COCO annotation file in Karpathy's layout (``dataset_coco.json``), in its order.

    Raises:
        ValueError: the file is missing, or not of that layout, or the split is empty.
    """
    file = Path(annotations).expanduser()
    try:
        entries = json.loads(file.read_text())["images"]
        chosen = [entry for entry in entries if entry["split"] == split]
        names = [(str(entry["cocoid"]), Path(entry.get("filepath", ""), entry["filename"])) for entry in chosen]
    except FileNotFoundError:
        raise ValueError(f"there is no annotation file {file}: check the path") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not Karpathy's dataset_coco.json ({type(error).__name__}: {error})") from None
    if not names:
        found = sorted({entry["split"] for entry in entries})
        raise ValueError(f"{file} has no pictures of split {split!r}: it has {', '.join(found) or 'none at all'}")
    return [Picture(name, split, _reader(Path(root).expanduser() / place)) for name, place in names]


def from_scenes(count: int, first: int = TRAINING_SCENES) -> list[Picture]:
    """Pictures that the embedded checkpoint was made for, drawn from seeds ``first``, ``first`` + 1, ..."""
    from llava.scenes.generator import sample

    if count < 1 or first < 0:
        raise ValueError(f"{count} scenes from seed {first}: give at least one scene, and no negative seed")
    return [
        Picture(f"scene-{seed}", "scenes", lambda seed=seed: sample(seed).draw())
        for seed in range(first, first + count)
    ]


def fingerprint(pictures: Sequence[Picture]) -> str:
    """Of the names, in order: a run goes on only with the same list."""
    return hashlib.sha256("\n".join(picture.name for picture in pictures).encode()).hexdigest()


def _reader(file: Path) -> Callable[[], Image.Image]:
    return lambda: load_image(file)
