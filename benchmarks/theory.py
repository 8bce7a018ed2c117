"""The quantities of the paper's theorems beside what pruning does: ``python benchmarks/theory.py --json FILE``.

For held-out questions about scenes, every budget K and a sweep of K_p: the radii eps_p = d(S_p, P), eps_v = d(S_v, V)
and eta = d(V, P) at the pruning layer, the bound's term max(eps_p, eps_v) + eta (Lemma 2), the measured change of the
logits of the answer's first token, and whether the answer is right. A sweep tells how much of the budget weak and
strong questions want for prompt centres (the paper's figure 4, in small). ``terms`` holds what the radii say of
Theorems 1 and 2, whose constants are not known. ``--samples FILE`` writes a JSON line for each question, K and K_p too.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import json
import math
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from llava.provenance import provenance, write_result
from llava.scenes.checkpoint import NUM_PATCHES, split_of
from llava.scenes.command import add_questions, load_model
from llava.scenes.evaluate import Asked, batches, questions
from llava.scenes.packing import IGNORE
from llava.scenes.splits import SPLITS
from mob import MoBConfig, Pruning

SHARES = tuple(eighth / 8 for eighth in range(9))  # of K that are prompt centres
LAYER, BATCH, SHOWN = 2, 50, 400


@torch.inference_mode()
def passes(model, asked: list[Asked], budgets: list[int]) -> list[dict]:
    """One entry for each question, K and K_p: radii, change of the logits, right or wrong."""
    out = []
    shares = [(K, math.floor(K * share + 0.5)) for K in budgets for share in SHARES]
    # With the paper's k the few words of these questions propose fewer tokens than K_p, and the sweep would stop there.
    settings = [MoBConfig(K=K, K_p=K_p, k=max(K_p, 1), l_idx=LAYER) for K, K_p in shares]
    with tqdm(total=len(asked) * len(settings), unit="pass", file=sys.stderr, disable=None) as bar:
        for places, inputs in batches(asked, BATCH, split_of(model)):
            with once([model.model.vision_tower, *model.model.language_model.layers[:LAYER]]):
                for one, records, moved, right in changes(model, inputs, settings):
                    for number, (place, record) in enumerate(zip(places, records, strict=True)):
                        about = {"scene": asked[place].scene, "task": asked[place].question.task}
                        about |= {"K": one.K, "K_p": one.K_p}
                        radii = {name: getattr(record, name) for name in ("eta", "eps_p", "eps_v")}
                        out.append({**about, **radii, "moved": moved[number], "right": right[number]})
                    bar.update(len(places))
    return out


@contextmanager
def once(modules: list[torch.nn.Module]) -> Iterator[None]:
    """What comes before the pruning is the same with every setting: these modules compute at their first call only."""
    for module in modules:
        module.forward = functools.partial(_kept, module.forward, [])
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _kept(forward, kept: list, *args, **kwargs):
    if not kept:
        kept.append(forward(*args, **kwargs))
    return kept[0]


def changes(model, inputs: dict, settings: list[MoBConfig]) -> Iterator[tuple[MoBConfig, list, list, list]]:
    """With each setting: the records, how far the logits of the answers' first tokens moved, and what is right."""
    labels = inputs["labels"][:, 1:]
    whole = model(**inputs, use_cache=False).logits[:, :-1]
    first = (labels != IGNORE).int().argmax(1)
    for one in settings:
        with Pruning(model, one, record=True) as pruning:
            logits = model(**inputs, use_cache=False).logits[:, :-1]
        moved = (logits - whole)[torch.arange(len(labels)), first].norm(dim=1).tolist()
        right = ((logits.argmax(-1) == labels) | (labels == IGNORE)).all(1).tolist()
        yield one, pruning.records, moved, right


def worst(entry: dict) -> float:
    """max(eps_p, eps_v); a set without centres covers nothing, and then there is no such number."""
    radii = [entry["eps_p"], entry["eps_v"]]
    return math.nan if None in radii or any(map(math.isnan, radii)) else max(radii)


def write_samples(path: Path, entries: list[dict]) -> None:
    """A JSON line for each entry, with the bound's term; compressed where the name ends in .gz."""
    order = sorted(entries, key=lambda e: (e["scene"], e["task"], -e["K"], e["K_p"]))  # what is alike compresses well
    data = "".join(json.dumps(_sample(entry), allow_nan=False) + "\n" for entry in order).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def _sample(entry: dict) -> dict:
    about = {name: entry[name] for name in ("scene", "task", "K", "K_p")}
    radii = {name: entry[name] for name in ("eta", "eps_p", "eps_v")} | {"bound": worst(entry) + entry["eta"]}
    short = {name: None if r is None or math.isnan(r) else round(r, 3) for name, r in radii.items()}
    return {**about, **short, "moved": round(entry["moved"], 2), "right": entry["right"]}


def correlation(pairs: list[tuple[float, float]]) -> float | None:
    """Spearman's, None with fewer than three pairs or none that differ."""
    if len(pairs) < 3:
        return None
    a, b = (_ranks(np.array(values)) for values in zip(*pairs, strict=True))
    return None if a.std() == 0 or b.std() == 0 else round(float(np.corrcoef(a, b)[0, 1]), 3)


def _ranks(values: np.ndarray) -> np.ndarray:
    """From 1; equal values share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[places]


def power(pairs: list[tuple[float, float]]) -> dict | None:
    """y = constant * x^-slope by least squares of the logarithms, and the least constant that lies above every y.

    None where there is nothing to fit: all x or all y are the same.
    """
    known = np.array([(x, y) for x, y in pairs if y > 0])  # a radius of 0 has no logarithm
    if not len(known) or (known == known[0]).all(0).any():
        return None
    x, y = np.log(known).T
    falling = round(float(np.polyfit(x, y, 1)[0]), 4)
    level = y - falling * x
    numbers = {"constant": np.exp(level.mean()), "least": np.exp(level.max()), "r2": np.corrcoef(x, y)[0, 1] ** 2}
    return {"slope": 0.0 - falling, **{name: round(float(value), 4) for name, value in numbers.items()}}


def theorems(entries: list[dict]) -> dict:
    """Of one kind of questions: how the radii fall with the number of centres (slope: 1 / d_eff), and Theorem 1.

    D1 and D2 are the largest for which max(eps_p, eps_v)^2 >= max(D1 K^(-2 / d_eff), D2 eta^2) is true of every entry,
    with the d_eff of farthest-point sampling alone. ``share``: the right side over the left one, mean of entries;
    ``flat``: the same of the largest constant, which knows neither K nor eta. ``spearman``: of eta and the left side.
    ``equal``: the least K_p at which Theorem 2's fitted visual term reaches its prompt term; None where none does.
    """
    both = [entry for entry in entries if not math.isnan(worst(entry))]
    alone = power([(e["K"], e["eps_v"]) for e in entries if e["K_p"] == 0])
    visual = power([(e["K"] - e["K_p"], e["eps_v"]) for e in both])
    prompt = power([(e["K_p"], e["eps_p"]) for e in both])
    slope = alone["slope"] if alone else 0.0  # with one K every slope gives the same first term
    D1 = min(worst(e) ** 2 * e["K"] ** (2 * slope) for e in both)
    D2 = min((worst(e) / e["eta"]) ** 2 for e in both)
    least = min(worst(e) ** 2 for e in both)
    rows = []
    for K in dict.fromkeys(e["K"] for e in both):
        here, first = [e for e in both if e["K"] == K], D1 * K ** (-2 * slope)
        rows.append({"K": K, "radius^2": _mean(worst(e) ** 2 for e in here), "D1 term": round(first, 4)})
        rows[-1]["D2 term"] = _mean(D2 * e["eta"] ** 2 for e in here)
        rows[-1]["share"] = _mean(max(first, D2 * e["eta"] ** 2) / worst(e) ** 2 for e in here)
        rows[-1]["flat"] = _mean(least / worst(e) ** 2 for e in here)
        rows[-1]["equal"] = _equal(prompt, visual, K)
    fits = {"eps_v alone": alone, "eps_v": visual, "eps_p": prompt}
    follows = correlation([(e["eta"], worst(e)) for e in both])
    return {"fits": fits, "D1": round(D1, 4), "D2": round(D2, 4), "spearman": follows, "rows": rows}


def _equal(prompt: dict | None, visual: dict | None, K: int) -> int | None:
    if prompt is None or visual is None:
        return None
    radius = {n: [one["constant"] * n ** -one["slope"] for one in (prompt, visual)] for n in range(1, K)}
    return next((K_p for K_p in range(1, K) if radius[K - K_p][1] >= radius[K_p][0]), None)


def report(entries: list[dict], split: str) -> dict:
    """By K: Lemma 2 for all questions and for each kind, and the sweep of K_p. By kind: Theorems 1 and 2."""
    of = {task: name for name in ("weak", "strong") for task in getattr(SPLITS[split], name)}
    kinds = {name: [e for e in entries if of.get(e["task"]) == name] for name in ("weak", "strong")}
    out = []
    for K in dict.fromkeys(entry["K"] for entry in entries):
        here = [entry for entry in entries if entry["K"] == K]
        parts = {name: [e for e in kind if e["K"] == K] for name, kind in kinds.items()}
        both = [entry for entry in here if not math.isnan(worst(entry))]
        row = {"K": K, "questions": len(here) // len(SHARES), **lemma(here)}
        row["kinds"] = {name: lemma(part) for name, part in parts.items()}
        row["sweep"] = [
            {"K_p": K_p, "questions": name, **_sweep([e for e in part if e["K_p"] == K_p])}
            for name, part in parts.items()
            for K_p in dict.fromkeys(e["K_p"] for e in here)
        ]
        every = max(1, len(both) // SHOWN)
        row["points"] = [[round(worst(e), 4), round(e["moved"], 3), of.get(e["task"], "other")] for e in both[::every]]
        out.append(row)
    return {"rows": out, "terms": {name: theorems(kind) for name, kind in kinds.items()}}


def lemma(entries: list[dict]) -> dict:
    """Mean eta, the least constant that makes Lemma 2 true, and rank correlations of its terms with the change."""
    both = [entry for entry in entries if not math.isnan(worst(entry))]
    terms = {
        "max(eps_p, eps_v)": worst,
        "eps_p": lambda e: e["eps_p"],
        "eps_v": lambda e: e["eps_v"],
        "max(eps_p, eps_v) + eta": lambda e: worst(e) + e["eta"],
    }
    return {
        "eta": _mean(e["eta"] for e in entries),
        "constant": round(max(e["moved"] / (worst(e) + e["eta"]) for e in both), 3),
        "spearman": {name: correlation([(term(e), e["moved"]) for e in both]) for name, term in terms.items()},
    }


def _sweep(entries: list[dict]) -> dict:
    by_task = [[e["right"] for e in entries if e["task"] == task] for task in {e["task"] for e in entries}]
    return {
        "right": round(100 * statistics.mean(statistics.mean(marks) for marks in by_task), 2),
        "asked": len(entries),
        "moved": _mean(e["moved"] for e in entries),
        "radius": _mean(worst(e) for e in entries),
        **{name: _mean(e[name] for e in entries) for name in ("eta", "eps_p", "eps_v")},
    }


def _mean(values) -> float | None:
    there = [value for value in values if value is not None and not math.isnan(value)]
    return round(statistics.mean(there), 4) if there else None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="the result")
    parser.add_argument(
        "--samples", type=Path, help="a JSON line for each question, K and K_p; compressed where the name ends in .gz"
    )
    add_questions(parser, n=200)
    parser.add_argument("--K", type=int, nargs="+", default=[44, 22, 11], help="visual tokens to keep of 196")
    args = parser.parse_args(argv)
    if not all(1 < K < NUM_PATCHES for K in args.K):
        parser.error(
            f"--K needs numbers from 2, for both kinds of centres, to {NUM_PATCHES - 1}, so that one is dropped"
        )
    model = load_model(parser, args)
    entries = passes(model, questions(args.n, args.split), args.K)
    setup = {"split": args.split, "n": args.n, "layer": LAYER, "model": args.model_path.name}
    out = {**report(entries, args.split), "setup": setup, "provenance": provenance(args.model_path)}
    write_result(args.json, out)
    if args.samples:
        write_samples(args.samples, entries)
    for row in out["rows"]:
        print(f"K={row['K']}: eta {row['eta']}, C >= {row['constant']}, Spearman {row['spearman']}")
        for part in row["sweep"]:
            print(f"  {part['questions']:6} K_p={part['K_p']:3}  right {part['right']:5.1f}  change {part['moved']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
