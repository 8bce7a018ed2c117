"""The quantities of the paper's theorems beside what pruning does: ``python benchmarks/theory.py --json FILE``.

For held-out questions about scenes, every budget K and a sweep of K_p: the radii eps_p = d(S_p, P), eps_v = d(S_v, V)
and eta = d(V, P) at the pruning layer, the bound's term max(eps_p, eps_v) + eta (Lemma 2), the measured change of the
logits of the answer's first token, and whether the answer is right. A sweep tells how much of the budget weak and
strong questions want for prompt centres (the paper's figure 4, in small).
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from llava.provenance import provenance, write_result
from llava.scenes.checkpoint import split_of
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
            labels = inputs["labels"][:, 1:]
            whole = model(**inputs).logits[:, :-1]
            first = (labels != IGNORE).int().argmax(1)
            for one in settings:
                with Pruning(model, one, record=True) as pruning:
                    logits = model(**inputs).logits[:, :-1]
                right = ((logits.argmax(-1) == labels) | (labels == IGNORE)).all(1).tolist()
                moved = (logits - whole)[torch.arange(len(labels)), first].norm(dim=1).tolist()
                for number, (place, record) in enumerate(zip(places, pruning.records, strict=True)):
                    radii = {name: getattr(record, name) for name in ("eta", "eps_p", "eps_v")}
                    about = {"task": asked[place].question.task, "K": one.K, "K_p": one.K_p}
                    out.append({**about, **radii, "moved": moved[number], "right": right[number]})
                bar.update(len(places))
    return out


def worst(entry: dict) -> float:
    """max(eps_p, eps_v); a set without centres covers nothing, and then there is no such number."""
    radii = [entry["eps_p"], entry["eps_v"]]
    return math.nan if None in radii or any(map(math.isnan, radii)) else max(radii)


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


def report(entries: list[dict], split: str) -> dict:
    """By K: means and rank correlations, the least constant that makes the bound true, and the sweep of K_p."""
    kind = SPLITS[split]
    group = {task: name for name in ("weak", "strong") for task in getattr(kind, name)}
    out = []
    for K in dict.fromkeys(entry["K"] for entry in entries):
        here = [entry for entry in entries if entry["K"] == K]
        both = [entry for entry in here if not math.isnan(worst(entry))]
        row = {"K": K, "questions": len(here) // len(SHARES), "eta": _mean(e["eta"] for e in here)}
        row["constant"] = round(max(e["moved"] / (worst(e) + e["eta"]) for e in both), 3)
        row["spearman"] = {
            "max(eps_p, eps_v)": correlation([(worst(e), e["moved"]) for e in both]),
            "eps_p": correlation([(e["eps_p"], e["moved"]) for e in both]),
            "eps_v": correlation([(e["eps_v"], e["moved"]) for e in both]),
            "max(eps_p, eps_v) + eta": correlation([(worst(e) + e["eta"], e["moved"]) for e in both]),
        }
        row["sweep"] = [
            {
                "K_p": K_p,
                "questions": name,
                **_sweep([e for e in here if e["K_p"] == K_p and group.get(e["task"]) == name]),
            }
            for name in ("weak", "strong")
            for K_p in dict.fromkeys(e["K_p"] for e in here)
        ]
        every = max(1, len(both) // SHOWN)
        row["points"] = [
            [round(worst(e), 4), round(e["moved"], 3), group.get(e["task"], "other")] for e in both[::every]
        ]
        out.append(row)
    return {"rows": out}


def _sweep(entries: list[dict]) -> dict:
    by_task = [[e["right"] for e in entries if e["task"] == task] for task in {e["task"] for e in entries}]
    return {
        "right": round(100 * statistics.mean(statistics.mean(marks) for marks in by_task), 2),
        "asked": len(entries),
        "moved": _mean(e["moved"] for e in entries),
        **{name: _mean(e[name] for e in entries) for name in ("eta", "eps_p", "eps_v")},
    }


def _mean(values) -> float | None:
    there = [value for value in values if value is not None and not math.isnan(value)]
    return round(statistics.mean(there), 4) if there else None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="the result")
    add_questions(parser, n=200)
    parser.add_argument("--K", type=int, nargs="+", default=[44, 22, 11], help="visual tokens to keep of 196")
    args = parser.parse_args(argv)
    model = load_model(parser, args)
    entries = passes(model, questions(args.n, args.split), args.K)
    setup = {"split": args.split, "n": args.n, "layer": LAYER, "model": args.model_path.name}
    out = {**report(entries, args.split), "setup": setup, "provenance": provenance(args.model_path)}
    write_result(args.json, out)
    for row in out["rows"]:
        print(f"K={row['K']}: eta {row['eta']}, C >= {row['constant']}, Spearman {row['spearman']}")
        for part in row["sweep"]:
            print(f"  {part['questions']:6} K_p={part['K_p']:3}  right {part['right']:5.1f}  change {part['moved']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
