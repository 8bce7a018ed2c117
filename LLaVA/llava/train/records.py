"""Reading LLaVA data: a list of ``{"id", "image", "conversations"}``, checked before anything is trained."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_TOKEN
from llava.conversation import Conversation, SeparatorStyle
from llava.train.arguments import STOP

_ROLES = {"human": 0, "user": 0, "gpt": 1, "assistant": 1}
_PICTURE_WORDS = 128  # what a picture counts for where samples are ordered by length
_SHOWN = 10
_VIDEO = "<video>"
# Keys under which other collections name what a record shows: read past, they would leave a text about nothing.
_PICTURES = ("images", "image_path", "image_paths", "image_file", "img")
_OTHERS = ("video", "videos", "video_path", "audio", "audios")
_NO_VIDEOS = 'only pictures are trained; leave the record out, or list frames under "image"'


class BadSample(ValueError):
    """A record or picture that cannot be trained on; the message is one line and names it."""


class NothingToLearn(BadSample):
    """A sample without an answer within the longest length: nothing is wrong with it, and it is left out."""


@dataclass(frozen=True)
class Record:
    """One sample: ``turns`` are texts, the user's first, with one ``<image>`` for each of ``images``."""

    name: str
    turns: tuple[str, ...]
    images: tuple[str, ...]

    @property
    def length(self) -> int:
        """About how many words; negative for text only."""
        words = sum(len(turn.split()) for turn in self.turns)
        return words + _PICTURE_WORDS * len(self.images) if self.images else -max(1, words)


class Refusals:
    """Names and counts what cannot be used, or stops the run.

    Args:
        policy: "stop" or "skip".
        log: JSON lines of what was skipped go there, one for each time; None: only to standard error.
    """

    def __init__(self, policy: str, log: Path | None = None) -> None:
        self.policy, self.log, self.names = policy, log, set()
        self._read = 0  # of the log, in bytes

    def add(self, name: str, error: BadSample) -> None:
        """Note one.

        Raises:
            BadSample: the run is to stop, and the sample is to blame.
        """
        if self.policy == STOP and not isinstance(error, NothingToLearn):
            raise BadSample(f"{error}; repair it, or leave such samples out with --on_bad_sample skip") from error
        self._follow()
        if name in self.names:
            return
        self.names.add(name)
        if len(self.names) <= _SHOWN:
            print(f"skipped: {error}", file=sys.stderr)
        if self.log is not None:
            with self.log.open("a") as file:  # one short write: lines of several workers stay whole
                file.write(json.dumps({"id": name, "reason": str(error)}) + "\n")

    def count(self) -> int:
        """Samples skipped so far, by all processes where there is a log."""
        self._follow()
        return len(self.names)

    def _follow(self) -> None:
        """Learn the names that other workers, and those of earlier epochs, have logged since the last look."""
        if self.log is None or not self.log.exists():
            return
        with self.log.open("rb") as file:
            file.seek(self._read)
            self.names |= {json.loads(line)["id"] for line in file}
            self._read = file.tell()


def read_records(path: str | Path, conv: Conversation, refusals: Refusals, start_end: bool = False) -> list[Record]:
    """The usable records of a data file; the others go to ``refusals``.

    Args:
        start_end: pictures stand between ``<im_start>`` and ``<im_end>``.

    Raises:
        ValueError: the file cannot be read, or nothing in it can be used.
    """
    records, errors = [], {}
    values = _load(Path(path))
    for number, raw in enumerate(values):
        name = _name(raw, number)
        try:
            records.append(_record(raw, name, conv, start_end))
        except BadSample as error:
            errors[name] = error
    if errors and refusals.policy == STOP:
        raise BadSample(
            f"{next(iter(errors.values()))}; {len(errors)} of {len(values)} records cannot be used: repair them, or "
            "leave them out with --on_bad_sample skip"
        )
    for name, error in errors.items():
        refusals.add(name, error)
    if not records:
        raise ValueError(f"{path} holds no usable record: give a list of {{id, image, conversations}}")
    return records


def _load(path: Path) -> list[Any]:
    if path.suffix in (".yaml", ".yml"):
        raise ValueError(
            f"--data_path {path}: lists of data sets are not read; join their records into one JSON list or .jsonl "
            "file, with pictures named from one --image_folder"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")  # with or without a mark of byte order
        # Not splitlines, which also splits at marks that a string may hold as they are.
        lines = [line for line in text.split("\n") if line.strip()]
        values = [json.loads(line) for line in lines] if path.suffix == ".jsonl" else json.loads(text)
    except OSError as error:
        raise ValueError(f"--data_path {path} cannot be read ({error.strerror}): check the path") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        lines = path.suffix != ".jsonl" and str(error).startswith("Extra data")
        hint = "if it holds JSON lines, name it .jsonl" if lines else "download it again"
        raise ValueError(f"--data_path {path} is not valid JSON ({error}): {hint}") from error
    if not isinstance(values, list):
        raise ValueError(f"--data_path {path} must hold a list of records")
    return values


def _name(raw: Any, number: int) -> str:
    identity = raw.get("id") if isinstance(raw, dict) else None
    return f"record {number}" if identity is None else f"record {number} (id {identity})"


def _record(raw: Any, name: str, conv: Conversation, start_end: bool) -> Record:
    if not isinstance(raw, dict) or not isinstance(raw.get("conversations"), list):
        raise BadSample(f"{name} has no list of conversations")
    _check_keys(raw, name)
    given = raw.get("image") or []
    images = [given] if isinstance(given, str) else given
    if not isinstance(images, list) or not all(isinstance(image, str) and image for image in images):
        raise BadSample(f"{name}: image must be the name of a file, or a list of names")
    turns = _turns(raw["conversations"], name)
    if any(_at_an_end(_VIDEO, turn) for turn in turns[::2]):
        raise BadSample(f"{name} asks about a {_VIDEO}: {_NO_VIDEOS}")
    plain = conv.sep_style is SeparatorStyle.PLAIN
    if plain and (len(turns) != 2 or not images):
        raise BadSample(f"{name}: version plain needs a picture, one human turn and one answer")
    if not images and not _at_an_end(DEFAULT_IMAGE_TOKEN, turns[0]):
        # Then it is a word of the text, and must not become a placeholder.
        literal = DEFAULT_IMAGE_TOKEN.replace("<", "< ")
        return Record(name, tuple(turn.replace(DEFAULT_IMAGE_TOKEN, literal) for turn in turns), ())
    _check_places(turns, len(images), name)
    turns = [_place(turn, len(images), conv, start_end) for turn in turns]
    return Record(name, tuple(turns), tuple(images))


def _check_keys(raw: dict[str, Any], name: str) -> None:
    if key := next((key for key in _PICTURES if raw.get(key)), None):
        raise BadSample(f'{name} has "{key}": pictures are read from "image" only, rename the key')
    if key := next((key for key in _OTHERS if raw.get(key)), None):
        raise BadSample(f'{name} has "{key}": {_NO_VIDEOS}')


def _at_an_end(mark: str, turn: str) -> bool:
    """Where LLaVA's data has its marks; elsewhere one may be a word of the text, out of a web page for instance."""
    return turn.strip().startswith(mark) or turn.strip().endswith(mark)


def _turns(conversations: list[Any], name: str) -> list[str]:
    """Texts, alternating and the user's first; an answer that nothing was asked for is left out, as upstream does."""
    turns: list[str] = []
    for number, said in enumerate(conversations):
        role = _ROLES.get(said.get("from")) if isinstance(said, dict) else None
        text = said.get("value") if isinstance(said, dict) else None
        if role is None or not isinstance(text, str):
            raise BadSample(f'{name}: turn {number} is not {{"from": "human" or "gpt", "value": text}}')
        if role == 1 and number == 0:
            continue
        if role != len(turns) % 2:
            raise BadSample(f"{name}: turn {number} is of the same speaker as the one before")
        if not text.strip():
            raise BadSample(f"{name}: turn {number} is empty")
        if not _encodes(text):
            raise BadSample(f"{name}: turn {number} holds half a surrogate pair, which is no character")
        turns.append(text)
    if len(turns) < 2:
        raise BadSample(f"{name} has no answer")
    return turns[: len(turns) // 2 * 2]


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_places(turns: list[str], images: int, name: str) -> None:
    asked = sum(turn.count(DEFAULT_IMAGE_TOKEN) for turn in turns[::2])
    if any(DEFAULT_IMAGE_TOKEN in turn for turn in turns[1::2]):
        raise BadSample(f"{name}: an answer holds {DEFAULT_IMAGE_TOKEN}")
    if asked != images:
        raise BadSample(f"{name} says {DEFAULT_IMAGE_TOKEN} {asked} time(s) and names {images} picture(s)")


def _place(turn: str, images: int, conv: Conversation, start_end: bool) -> str:
    """A single picture goes to the front of its turn, as at inference; several stay where the text has them."""
    if DEFAULT_IMAGE_TOKEN not in turn:
        return turn
    picture = f"<Image>{DEFAULT_IMAGE_TOKEN}</Image>" if "mmtag" in conv.version else DEFAULT_IMAGE_TOKEN
    if start_end:
        picture = picture.replace(
            DEFAULT_IMAGE_TOKEN, DEFAULT_IM_START_TOKEN + DEFAULT_IMAGE_TOKEN + DEFAULT_IM_END_TOKEN
        )
    if images == 1:
        return f"{picture}\n{turn.replace(DEFAULT_IMAGE_TOKEN, '').strip()}"
    return turn.replace(DEFAULT_IMAGE_TOKEN, picture)
