"""Budgets that follow each picture, on scenes: ``python benchmarks/adaptive.py --json FILE``.

``epsilon``: each radius with the largest K, and beside it the same number of tokens for all, as many as it kept on
average. ``online``: a threshold that moves with the questions, in the order of the scenes, beside the default.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from llava.provenance import provenance, write_result
from llava.scenes.checkpoint import split_of
from llava.scenes.command import add_questions, load_model
from llava.scenes.evaluate import Asked, Scores, batches, questions, right_under, rounded
from mob import MoBConfig, Pruning

LAYER, BATCH = 2, 50


@torch.inference_mode()
def ask(model, asked: list[Asked], settings: MoBConfig) -> tuple[list[bool], float]:
    """Right or wrong for every question, in their order under one pruning, and the mean number of tokens that stay."""
    marks = []
    with Pruning(model, settings, record=True) as pruning:
        for _, inputs in batches(asked, BATCH, split_of(model)):
            marks += right_under(model, inputs)
    return marks, statistics.mean(record.K for record in pruning.records)


def rows(model, asked: list[Asked], most: int, radii: list[float], budgets: list[int]) -> list[dict]:
    """One dict a row: what it was asked with, tokens, accuracy with its interval, and, paired, minus ``beside``."""
    scores, out = Scores(asked), []
    places = 2 * len(radii) + 2 * len(budgets)
    with tqdm(total=places, unit="row", file=sys.stderr, disable=None) as bar:

        def add(what: dict, beside: tuple[str, int] | None = None) -> tuple[str, int]:
            row = (f"row {len(out)}", what["K"])
            marks, tokens = ask(model, asked, MoBConfig(l_idx=LAYER, **what))
            scores.add(row, marks)
            one = {**what, "tokens": round(tokens, 2), "macro": rounded(scores.macro(row))}
            if beside is not None:
                one["minus"] = rounded(scores.difference(row, beside))
            out.append(one)
            bar.update(1)
            return row

        for K in budgets:
            add({"K": K, "regime": "auto", "online": True}, add({"K": K}))
        for radius in radii:
            row = add({"K": most, "epsilon": radius})
            same = {"K": max(1, round(out[-1]["tokens"]))}
            place, other = len(out) - 1, add(same)
            out[place]["minus"] = rounded(scores.difference(row, other))
    return out


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="the result")
    add_questions(parser, n=200)
    parser.add_argument("--K", type=int, default=65, help="the most tokens under a radius (65)")
    parser.add_argument("--epsilon", type=float, nargs="*", default=[0.4, 0.6, 0.8], help="radii")
    parser.add_argument("--online", type=int, nargs="*", default=[65, 22], metavar="K", help="budgets of online")
    args = parser.parse_args(argv)
    model = load_model(parser, args)
    found = rows(model, questions(args.n, args.split), args.K, args.epsilon, args.online)
    setup = {"split": args.split, "n": args.n, "layer": LAYER, "batch": BATCH, "model": args.model_path.name}
    write_result(args.json, {"rows": found, "setup": setup, "provenance": provenance(args.model_path)})
    for row in found:
        print(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
