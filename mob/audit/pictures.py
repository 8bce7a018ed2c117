"""The pictures of a report: found by name or by hash in one folder, made small, and written as text for the page."""

from __future__ import annotations

import base64
import bisect
import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, Any

from PIL import Image, features

from mob.audit.media import Reference
from mob.media import ImageError, load_image, upright_rgb
from mob.video import probe, read_frames, uniform_indices

_PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm"}
_VIDEOS = {".mp4", ".avi", ".mkv", ".webm", ".mov", ".mpg", ".mpeg", ".m4v", ".wmv", ".flv"}
_SHORTEST_HASH = 8
_QUALITY = 78
_FRAME_SHARE = 0.5  # frames are shown small, and a video has many

Progress = Callable[..., Iterable[Any]]
NAMELESS, ABSENT, BROKEN, AMBIGUOUS = "not named in the log", "not found", "unreadable", "several of that name"


def default_side(pictures: int) -> int:
    """Longest side in pixels that keeps a report of so many pictures at some tens of megabytes."""
    return 512 if pictures <= 500 else 320 if pictures <= 2000 else 224


@dataclass(frozen=True)
class Shot:
    """A picture of the page: its number there, and the size of the original in pixels."""

    number: int
    width: int
    height: int


@dataclass
class Album:
    """Pictures of one folder, or one picture file for everything.

    Attributes:
        root: the folder or file; None for a report without pictures.
        side: longest side in the page, in pixels; None to choose by their number.
        trouble: why pictures are missing -> how many samples it befell.
    """

    root: Path | None
    side: int | None = None
    trouble: Counter = field(default_factory=Counter)
    _names: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))
    _hashes: list[tuple[str, Path]] | None = None

    def __post_init__(self) -> None:
        if self.root is None or self.root.is_file():
            return
        if not self.root.is_dir():
            raise ValueError(f"--images {self.root}: no such folder; give the folder of the pictures, or --no-pictures")
        for folder, _, names in os.walk(self.root):
            for name in names:
                if Path(name).suffix.lower() in _PICTURES | _VIDEOS:
                    self._names[name.lower()].append(Path(folder, name))

    def __len__(self) -> int:
        return sum(map(len, self._names.values()))

    def find(self, reference: Reference, progress: Progress | None = None) -> Path | str:
        """The file of a picture, or why there is none. Nothing outside the folder is ever opened."""
        if self.root is None:
            return NAMELESS
        if self.root.is_file():
            return self.root
        best: list[Path] = []
        if reference.name:
            parts = PurePosixPath(reference.name.replace("\\", "/").lower()).parts
            files = self._names.get(parts[-1], []) if parts else []
            if not files and parts:  # logs and question files like to leave out the suffix
                files = [f for suffix in sorted(_PICTURES | _VIDEOS) for f in self._names.get(parts[-1] + suffix, [])]
            best = _longest_match(files, parts)
            if len(best) == 1:
                return best[0]
        if reference.digest and (file := self._by_hash(reference.digest, progress or _silent)):
            return file
        if best:
            return AMBIGUOUS
        return ABSENT if reference.name or reference.digest else NAMELESS

    def _by_hash(self, digest: str, progress: Progress) -> Path | None:
        if saved := self._names.get(f"{digest}.png"):  # by ``mob.audit.writing.save_picture``
            return saved[0]
        if self._hashes is None:
            files = [file for some in self._names.values() for file in some]
            with ThreadPoolExecutor() as pool:
                hashed = progress(pool.map(_digests, files), total=len(files), desc="hashes", unit="file")
                self._hashes = sorted((one, f) for found, f in zip(hashed, files, strict=True) for one in found)
        at = bisect.bisect_left(self._hashes, (digest,))
        fits = len(digest) >= _SHORTEST_HASH and at < len(self._hashes) and self._hashes[at][0].startswith(digest)
        return self._hashes[at][1] if fits else None

    def fill(
        self, wanted: list[list[tuple[list[Reference], int]]], page: IO[str], progress: Progress | None = None
    ) -> list[list[list[Shot]]]:
        """Find the pictures of every sample, and write each once to ``page``.

        Args:
            wanted: for each sample, for each of its pictures, its references (one, or frames) and number of views.

        Returns:
            For each sample, for each of its pictures, what is shown: one shot, frames of a video, or nothing.
        """
        progress = progress or _silent
        jobs: dict[tuple[Path, int], list[Shot]] = {}  # (file, frames to take of it)
        plan: list[list[list[tuple[Path, int]]]] = []
        for sample in wanted:
            found = [[self.find(one, progress) for one in frames] for frames, _ in sample]
            for reason in {one for frames in found for one in frames if isinstance(one, str)}:
                self.trouble[reason] += 1
            rows = [
                [(file, views if file.suffix.lower() in _VIDEOS else 0) for file in frames if isinstance(file, Path)]
                for frames, (_, views) in zip(found, sample, strict=True)
            ]
            plan.append(rows)
            jobs.update((job, []) for row in rows for job in row)
        users = Counter(job for rows in plan for job in {job for row in rows for job in row})
        self.side = self.side or default_side(len(jobs))
        # A run of frames named one by one is as many pictures as a video is.
        small = {job for rows in plan for row in rows if len(row) > 1 for job in row}
        number = 0
        with ThreadPoolExecutor() as pool:
            made = pool.map(lambda job: _shrunk(*job, self.side, job in small), jobs)
            made = progress(made, total=len(jobs), desc="pictures", unit="picture")
            for job, pictures in zip(jobs, made, strict=True):
                if not pictures:
                    self.trouble[BROKEN] += users[job]
                for size, kind, content in pictures:
                    text = base64.b64encode(content).decode()
                    page.write(f'<script type="text/plain" id="p{number}">data:image/{kind};base64,{text}</script>\n')
                    jobs[job].append(Shot(number, *size))
                    number += 1
        return [[[shot for job in row for shot in jobs[job]] for row in rows] for rows in plan]


def _longest_match(files: list[Path], parts: tuple[str, ...]) -> list[Path]:
    """Of files of one name those that share the most folders with ``parts``."""

    def shared(file: Path) -> int:
        pairs = zip(reversed(file.parts[:-1]), reversed(parts[:-1]), strict=False)
        return next((n for n, (a, b) in enumerate(pairs) if a.lower() != b), min(len(file.parts), len(parts)) - 1)

    most = max(map(shared, files), default=0)
    return [file for file in files if shared(file) == most]


def _digests(file: Path) -> set[str]:
    """SHA-256 of a file's bytes, and of a picture's RGB pixels, upright and as stored: a log knows one of them."""
    try:
        digest = hashlib.sha256()
        with file.open("rb") as content:
            while block := content.read(2**20):
                digest.update(block)
        found = {digest.hexdigest()}
        if file.suffix.lower() in _PICTURES:
            with Image.open(file) as image:
                pixels = (image.convert("RGB").tobytes(), upright_rgb(image).tobytes())
            found |= {hashlib.sha256(one).hexdigest() for one in pixels}
    except Exception:  # a file that is no picture has no hash that a log could name; decoders fail in their own ways
        return set()
    return found


def _shrunk(file: Path, frames: int, side: int, small: bool) -> list[tuple[tuple[int, int], str, bytes]]:
    """(size of the original, format, bytes) of a picture, or of evenly spread frames; [] where it cannot be read."""
    try:
        if frames:
            shots = read_frames(file, uniform_indices(probe(file).frames, frames))
            images = [Image.fromarray(shot) for shot in shots]
        else:
            images = [load_image(file)]
    except ImageError:
        return []
    side = max(64, round(side * _FRAME_SHARE)) if small or len(images) > 1 else side
    return [(image.size, *_encoded(image, side)) for image in images]


def _encoded(image: Image.Image, side: int) -> tuple[str, bytes]:
    image = image.copy() if max(image.size) > side else image
    image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0)
    kind = "webp" if features.check("webp") else "jpeg"
    file = BytesIO()
    image.save(file, kind.upper(), quality=_QUALITY)
    return kind, file.getvalue()


def _silent(items: Iterable[Any], **_: Any) -> Iterator[Any]:
    return iter(items)
