"""Lines of JSON become samples. What is read, and under which keys, is told in ``mob.audit``."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mob.audit.media import Reference, references
from mob.audit.scoring import verdict
from mob.record import RetainedPatches

ENTRY = "retained_patches"
_LONGEST_TEXT = 6000
_OF_ANSWERS = ("prompt", "answer_id", "model_id", "pred")  # llava.eval's answers have one of them, its questions none
_DEEPEST = 4  # levels of a line that are searched for the entry
_SAMPLES_OF = re.compile(r"_samples_(.+)$")
_LISTS = ("keep_indices", "prompt_center", "image", "view", "row", "column")
_COUNTS = {"N": 0, "K": 0, "K_p": 0, "k": 1, "layer": 2}
_RADII = ("eta", "eps_p", "eps_v", "milliseconds")
_MOST_CELLS = 2**22
_FLAGS = "lmms-eval and llava.eval write them with --log-retained-patches, run_llava with --save-record, if MoB is on"


@dataclass
class Sample:
    """One question with what was kept for it. ``right`` is None where nothing says; ``why`` names what does."""

    name: str
    task: str
    source: str
    question: str
    answer: str
    targets: list[str]
    right: bool | None
    why: str
    records: list[RetainedPatches]
    media: list[list[Reference]]
    mean_tokens: list[float | None]


@dataclass
class Reading:
    """Samples in the order of their files, and how many lines had no entry."""

    samples: list[Sample] = field(default_factory=list)
    without_entry: int = 0
    files: list[str] = field(default_factory=list)


@dataclass
class _Draft:
    """The lines of one sample, before they are understood."""

    path: Path
    number: int
    answer: dict[str, Any] = field(default_factory=dict)
    entries: list[dict[str, Any]] = field(default_factory=list)
    entry_line: dict[str, Any] = field(default_factory=dict)
    question: dict[str, Any] = field(default_factory=dict)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [self.entry_line, self.answer, self.question]


def read(paths: Sequence[Path], layers: int | None = None) -> Reading:
    """The samples of some files.

    Args:
        layers: decoder layers of the model, where the log does not say.

    Raises:
        ValueError: no such file, not JSON, a broken entry (each with its line), or no entry in any of the files.
    """
    logs = [log for path in paths for log in _logs(path)]
    out = Reading(files=[log.name for log in logs])
    for draft in _drafts(logs):
        if draft.entries:
            out.samples.append(_sample(draft, layers))
        else:
            out.without_entry += 1
    if not out.samples:
        names = ", ".join(map(str, paths))
        raise ValueError(f"{names}: no retained patches in {out.without_entry} lines; {_FLAGS}")
    return out


def _logs(path: Path) -> list[Path]:
    """The file, or the logs of lmms-eval in a folder."""
    if not path.is_dir():
        return [path]
    found = sorted(path.rglob("*_samples_*.jsonl"))
    if not found:
        raise ValueError(f"{path} holds no *_samples_*.jsonl; lmms-eval writes them with --log_samples")
    return found


def lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of a file of JSON lines; a file that is one object or one list is taken as well."""
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                if not raw.strip():
                    continue
                try:
                    value = _loads(raw)
                except ValueError as error:  # also bytes that are no UTF-8
                    whole = _whole(path) if number == 1 else None
                    if whole is None:
                        raise ValueError(f"{path}, line {number}: not JSON ({error}); give JSON lines") from None
                    yield from _objects(path, 1, whole)
                    return
                yield from _objects(path, number, value)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}; check the path") from None
    except RecursionError:
        raise ValueError(f"{path}: JSON nested too deeply; give the log of an evaluation") from None


def _loads(raw: bytes) -> Any:
    """JSON; integers that no float can hold become infinite, which nothing accepts as a number."""
    return json.loads(raw, parse_int=lambda digits: int(digits) if len(digits) <= 100 else math.inf)


def _whole(path: Path) -> Any:
    try:
        return _loads(path.read_bytes())
    except ValueError:
        return None


def _objects(path: Path, number: int, value: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    for one in value if isinstance(value, list) else [value]:
        if not isinstance(one, dict):
            raise ValueError(f"{path}, line {number}: JSON, but no object ({repr(one)[:20]}); give JSON lines")
        yield number, one


def _drafts(paths: Sequence[Path]) -> list[_Draft]:
    """Lines put together to samples: those with a question_id (or id) by it, every other line for itself."""
    drafts: list[_Draft] = []
    by_question: dict[tuple[str, int], list[_Draft]] = {}
    questions: dict[tuple[str, int], dict[str, Any]] = {}
    for path in paths:
        seen: Counter[str] = Counter()
        for number, line in lines(path):
            entries = _entries(line, f"{path}, line {number}")
            name = line.get("question_id", line.get("id"))
            if name is None or "doc_id" in line:
                drafts.append(_Draft(path, number, answer=line, entries=entries))
                continue
            key = (str(name), seen[str(name)])
            seen[key[0]] += 1
            answered = any(field in line for field in _OF_ANSWERS)
            kept = ENTRY in line or bool(entries)  # null where nothing was pruned
            if not kept and not answered:
                questions[key] = line
                continue
            group = by_question.setdefault(key, [])
            draft = next((d for d in group if not (kept and d.entry_line) and not (answered and d.answer)), None)
            if draft is None:  # a further run over the same questions
                draft = _Draft(path, number)
                group.append(draft)
                drafts.append(draft)
            if kept:
                draft.entries, draft.entry_line = entries, line
            if answered:
                draft.answer = line
    for (name, place), group in by_question.items():
        for draft in group:  # an id may be asked in several rounds, and stand in the questions once
            draft.question = questions.get((name, place)) or questions.get((name, 0), {})
    return drafts


# ---------------------------------------------------------------------------------------------------------------
# The entry


def _entries(line: dict[str, Any], place: str) -> list[dict[str, Any]]:
    """The raw entries of a line: under its key at any depth, or the line itself. ValueError names ``place``."""
    found = _find(line, _DEEPEST)
    if not found and isinstance(line.get("keep_indices"), list):
        found = [line]
    found = [entry for entry in found if "keep_indices" in entry]  # logged without: nothing was pruned
    for entry in found:
        if not isinstance(entry["keep_indices"], list):
            raise ValueError(f"{place}: {ENTRY} without a list keep_indices; write it with RetainedPatches.to_dict")
        try:
            entry[ENTRY] = _record(entry)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
    return found


def _find(value: Any, depth: int) -> list[dict[str, Any]]:
    if isinstance(value, dict):
        if value.get(ENTRY):
            given = value[ENTRY]
            return [one for one in (given if isinstance(given, list) else [given]) if isinstance(one, dict)]
        value = value.values()
    elif not isinstance(value, list):
        return []
    return [] if depth == 0 else [entry for inner in value for entry in _find(inner, depth - 1)]


def _record(entry: dict[str, Any]) -> RetainedPatches:
    """The record of an entry, its types checked; lists that are missing say that no token has a place."""
    keep = entry["keep_indices"]
    missing = {"prompt_center": False, "image": 0, "view": 0, "row": -1, "column": -1}
    values: dict[str, Any] = {name: [default] * len(keep) for name, default in missing.items()}
    for name in _LISTS:
        # An entry may use "image" for the name of its picture.
        given = entry.get(name)
        if isinstance(given, list) and given and all(isinstance(one, int) for one in given):
            values[name] = given
        elif given and name != "image":
            raise ValueError(f"{name} of {ENTRY} is not a list of integers; write it with RetainedPatches.to_dict")
    values["prompt_center"] = [bool(one) for one in values["prompt_center"]]
    values["keep_indices"] = keep
    for name, default in _COUNTS.items():
        value = entry.get(name)
        value = (len(keep) if name in "NK" else default) if value is None else value
        if not isinstance(value, int):
            raise ValueError(f"{name} of {ENTRY} is {str(value)[:40]!r}, not a number")
        values[name] = value
    values |= {name: _finite(entry.get(name)) for name in _RADII}
    method = entry.get("method")
    values["method"] = str(method)[:60] if isinstance(method, str) else "?"
    values["grids"] = _grids(entry.get("grids") or [])
    values["stages"] = _stages(entry.get("stages"))
    values["adaptive"] = _adaptive(entry.get("adaptive"))
    return RetainedPatches(**values)


def _grids(grids: Any) -> list[list[list[int]]]:
    try:
        clean = [[[int(rows), int(columns)] for rows, columns in views] for views in grids]
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"grids of {ENTRY} is not a list of [rows, columns] for each view of each picture") from None
    sides = [side for views in clean for shape in views for side in shape]
    if any(side < 0 for side in sides) or sum(r * c for views in clean for r, c in views) > _MOST_CELLS:
        raise ValueError(f"grids of {ENTRY} has a negative side, or more than {_MOST_CELLS} cells")
    return clean


def _stages(stages: Any) -> list[dict]:
    """Stages before the last one, those that say what they kept."""
    clean = []
    for one in stages if isinstance(stages, list) else ():
        if isinstance(one, dict) and isinstance(one.get("N"), int) and isinstance(one.get("K"), int):
            clean.append({"method": str(one.get("method", "?"))[:60], "N": one["N"], "K": one["K"]})
            clean[-1]["radius"] = _finite(one.get("radius"))
            if isinstance(one.get("layer"), int) and one["layer"] > 0:
                clean[-1]["layer"] = one["layer"]
    return clean


def _adaptive(given: Any) -> dict:
    """What an adaptive budget was set to and came to: numbers, and lists of them."""
    clean: dict[str, Any] = {}
    for name, value in given.items() if isinstance(given, dict) else ():
        if isinstance(value, list):
            clean[name] = [_finite(one) for one in value]
        elif name == "regime" or _finite(value) is not None:
            clean[name] = str(value)[:20] if name == "regime" else value
    return clean


def _finite(value: Any) -> float | None:
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else None


# ---------------------------------------------------------------------------------------------------------------
# The rest of a sample


def _sample(draft: _Draft, layers: int | None) -> Sample:
    entry, line = draft.entries[0], draft.answer or draft.entry_line
    doc = line.get("doc") if isinstance(line.get("doc"), dict) else {}
    records = [one[ENTRY] for one in draft.entries]
    answer = _answer(draft, line)
    targets = _targets(draft, line, doc)
    right, why = verdict(line, answer, targets)
    pictures = max(int(bool(record.N)) * max(1, len(record.grids)) for record in records)
    views = max((len(record.grids[0]) for record in records if record.grids), default=1)
    return Sample(
        name=_text(_first([entry, *draft.lines], ("doc_id", "question_id", "id"))) or f"line {draft.number}",
        task=_task(draft, entry),
        source=f"{draft.path.name}, line {draft.number}",
        question=_question(draft, line, doc),
        answer=answer,
        targets=targets,
        right=right,
        why=why,
        records=records,
        media=references([entry, *draft.lines, doc], pictures, views),
        mean_tokens=[_mean_tokens(one, layers) for one in draft.entries],
    )


def _task(draft: _Draft, entry: dict[str, Any]) -> str:
    named = _first([entry, *draft.lines], ("task", "task_name", "category"))
    if isinstance(named, (str, int)) and str(named):
        return str(named)[:120]
    match = _SAMPLES_OF.search(draft.path.stem)
    return (match[1] if match else draft.path.stem)[:120]


def _question(draft: _Draft, line: dict[str, Any], doc: dict[str, Any]) -> str:
    asked = _first([line, draft.entry_line], ("input", "query", "prompt", "question"))
    asked = asked or _first([draft.question], ("text", "question")) or line.get("arguments")
    return _text(asked or _first([doc], ("question", "query", "prompt", "text")))


def _answer(draft: _Draft, line: dict[str, Any]) -> str:
    if "query" in line and "answer" in line:  # run_llava --save-record
        return _text(line["answer"])
    names = ("filtered_resps", "resps", "prediction", "pred", "response", "output")
    answer = _first([line], names)
    return _text(line.get("text") if answer is None and line is not draft.question else answer)


def _targets(draft: _Draft, line: dict[str, Any], doc: dict[str, Any]) -> list[str]:
    names = ("target", "label", "ground_truth", "gt_answer", "answers", "answer")
    found = _first([{} if "query" in line else line, draft.question, doc], names)
    return list(dict.fromkeys(filter(None, (text[:500] for text in _strings(found)))))[:20]


def _mean_tokens(entry: dict[str, Any], layers: int | None) -> float | None:
    """Mean visual tokens a layer: logged, or from the number of layers."""
    record = entry[ENTRY]
    if (logged := _finite(entry.get("mean_tokens"))) is not None:
        return logged
    layers = next((entry[n] for n in ("layers", "num_layers", "num_hidden_layers", "depth") if entry.get(n)), layers)
    places = [0, *(stage.get("layer", 0) for stage in record.stages), record.layer]
    if not isinstance(layers, int) or places != sorted(places) or layers <= record.layer:
        return None
    return replace(record, depth=layers).mean_tokens


def _first(sources: Iterable[dict[str, Any]], names: Sequence[str]) -> Any:
    """The first value that is there, by source and then by name."""
    found = (source[name] for source in sources for name in names if name in source)
    return next((value for value in found if value is not None and value != "" and value != []), None)


def _text(value: Any) -> str:
    """The first text inside a value: logs wrap answers in one list, or two."""
    text = next(iter(_strings(value)), "")
    return text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + " ..."


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value.strip()
    elif isinstance(value, (bool, int, float)):
        yield str(value)
    elif isinstance(value, dict):
        # VQA targets are objects with an answer; any other object is read in its own order.
        yield from _strings(value["answer"] if "answer" in value else list(value.values()))
    elif isinstance(value, list):
        for one in value:
            yield from _strings(one)
