"""The result of ``compare.py``, from what was answered: accuracy, paired differences, and what tells rules apart."""

from __future__ import annotations

import math
import statistics
from itertools import islice

import torch
from compare_answers import Answers
from compare_rows import BATCH, LAYER, REGIMES, Settings, Way, mean_of, read

from llava.scenes.checkpoint import NUM_PATCHES, split_of
from llava.scenes.evaluate import DROP_ALL, VANILLA, Asked, Scores, batches, rounded
from mob import MoBConfig, Pruning

LOOKED, SIDES = 9, 18  # batches that prompt centres are counted in, and that etas are compared with tau in


def mcnemar(a: list[bool], b: list[bool]) -> float:
    """Two-sided exact p of McNemar's test: how surprising the split of the questions that only one of the two got."""
    pairs = list(zip(a, b, strict=True))
    only_a, only_b = pairs.count((True, False)), pairs.count((False, True))
    n, few = only_a + only_b, min(only_a, only_b)
    tail = sum(math.exp(_log_choose(n, k) - n * math.log(2)) for k in range(few + 1))
    return min(1.0, 2 * tail)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _by_task(scores: Scores, row: tuple[str, int]) -> dict[str, float]:
    """Percent right in each kind of question."""
    counts = {task: scores.task(row, task) for task in scores.tasks}
    return {task: round(100 * right / asked, 2) for task, (right, asked) in counts.items()}


def report(asked: list[Asked], found: list[Way], answers: Answers, took: dict, layers: int) -> dict:
    """Accuracy with intervals, and every rule minus MoB at the same budget, paired."""
    scores = Scores(asked)
    for row in [(VANILLA, NUM_PATCHES), (DROP_ALL, 0), *dict.fromkeys(way.row for way in found)]:
        scores.add(row, answers.get(row))
    rows = []
    for way in found:
        groups = {group: rounded(scores.macro(way.row, group)) for group in scores.groups}
        row = {**vars(way), "mean_tokens": round(mean_of(way.method, way.K, layers), 2)}
        row |= {"macro": rounded(scores.macro(way.row)), **groups, "tasks": _by_task(scores, way.row)}
        row |= took[way.row] | {"asked_at": answers.commit_of(way.row)}
        mob = ("mob", way.budget)
        if way.method != "mob":
            row["minus_mob"] = rounded(scores.difference(way.row, mob)) | {
                "p": mcnemar(answers.get(way.row), answers.get(mob)),
                **{group: rounded(scores.difference(way.row, mob, group)) for group in scores.groups},
            }
        if way.method == "mob:auto":
            row["minus_fixed"] = {
                name: rounded(scores.difference(way.row, (name, way.budget)))
                for name in REGIMES
                if name != way.method and answers.get((name, way.budget)) is not None
            }
        rows.append(row)
    ends = {VANILLA: (VANILLA, NUM_PATCHES), DROP_ALL: (DROP_ALL, 0)}
    whole = {
        name: {"macro": rounded(scores.macro(row)), "tasks": _by_task(scores, row)}
        | {"prefill_ms": took[row]["prefill_ms"]}
        | {group: rounded(scores.macro(row, group)) for group in scores.groups}
        for name, row in ends.items()
    }
    there = {(way.method, way.K) for way in found if way.by == "K"}
    both = [K for method, K in there if method == "prompt" and ("visual", K) in there]
    return {
        **whole,
        "rows": rows,
        "prompt_minus_visual": apart(scores, sorted(both, reverse=True)),
        "questions": len(asked),
    }


def apart(scores: Scores, budgets: list[int]) -> list[dict]:
    """``prompt`` minus ``visual``: on weak and strong questions, on these without any one kind, and on every kind."""
    of = dict(scores.groups)
    for name, tasks in scores.groups.items():
        of |= {f"{name} without {task}": tuple(one for one in tasks if one != task) for task in tasks}
    of |= {task: (task,) for task in scores.tasks}
    return [
        {"K": K, "of": name} | rounded(scores.difference(("prompt", K), ("visual", K), tasks))
        for K in budgets
        for name, tasks in of.items()
    ]


@torch.inference_mode()
def above(model, asked: list[Asked], tau: float) -> dict[str, float]:
    """Percent of the questions of each kind, of the first ``SIDES`` batches, whose eta is above ``tau``: weak coupling,
    as ``auto`` sees it."""
    sides: dict[str, list[bool]] = {}
    for places, inputs in islice(batches(asked, BATCH, split_of(model)), SIDES):
        with Pruning(model, MoBConfig(K=1, l_idx=LAYER), record=True) as pruning:
            model(**inputs)
        for place, one in zip(places, pruning.records, strict=True):
            sides.setdefault(asked[place].question.task, []).append(one.eta > tau)
    return {task: round(100 * statistics.mean(marks), 1) for task, marks in sides.items()}


@torch.inference_mode()
def centres(model, asked: list[Asked], rows: list[tuple[str, int]], settings: Settings) -> dict[tuple[str, int], dict]:
    """Of the rules that want prompt centres: how many are asked for and how many there are, means over some questions.

    A cover of the question by k neighbours of each word may take fewer tokens than K_p.
    """
    seen: dict[tuple[str, int], list] = {row: [] for row in rows if read(row[0])[0][-1] == "mob"}
    for number, (_, inputs) in enumerate(islice(batches(asked, BATCH, split_of(model)), LOOKED)):
        for row in seen:
            with Pruning(model, settings.of(*row, number), record=True) as pruning:
                model(**inputs)
            seen[row] += [(one.K_p, sum(one.prompt_center)) for one in pruning.records]
    means = {
        row: [round(statistics.mean(values), 2) for values in zip(*pairs, strict=True)] for row, pairs in seen.items()
    }
    return {row: {"centres_asked": wanted, "centres": found} for row, (wanted, found) in means.items()}
