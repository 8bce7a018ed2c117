"""Which patches a question keeps, of those that it is about: ``python benchmarks/recall.py --json FILE``.

Weak questions about scenes rest on a few patches (``Question.answer_patches``). For every rule and layer: the share of
them among the K that stay, a mean over questions. A rule led by the prompt finds them where the model couples words and
patches at that layer; a rule that covers the picture keeps about K/N of them, as ``random`` does, more where they stand
out. So the numbers tell what a checkpoint was trained to couple, which the paper takes as a property of the task.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from llava.provenance import provenance, write_result
from llava.scenes.checkpoint import split_of
from llava.scenes.command import add_questions, load_model
from llava.scenes.evaluate import RESAMPLES, Asked, batches, questions
from llava.scenes.splits import SPLITS
from mob import MoBConfig, Pruning

RULES = ("prompt", "mob", "visual", "random")
LAYERS = (1, 2, 3)
BATCH = 50


@torch.inference_mode()
def recalls(model, asked: list[Asked], K: int) -> dict[tuple[str, int], list[float]]:
    """For each rule and layer, one number a question: the share of its patches that stay."""
    rows = [(rule, layer) for layer in LAYERS for rule in RULES]
    out: dict[tuple[str, int], list[float]] = {row: [] for row in rows}
    with tqdm(total=len(asked) * len(rows), unit="pass", file=sys.stderr, disable=None) as bar:
        for number, (places, inputs) in enumerate(batches(asked, BATCH, split_of(model))):
            wanted = [set(_patches(asked[place])) for place in places]
            for rule, layer in rows:
                options = {"seed": number} if rule == "random" else {}
                settings = MoBConfig(K=K, l_idx=layer, method=rule, options=options)
                with Pruning(model, settings, record=True) as pruning:
                    model(**inputs)
                kept = [set(record.keep_indices) for record in pruning.records]
                out[rule, layer] += [len(a & b) / len(a) for a, b in zip(wanted, kept, strict=True)]
                bar.update(len(places))
    return out


def _patches(one: Asked) -> list[int]:
    scene = SPLITS[one.split].scene(one.scene)
    return np.flatnonzero(one.question.answer_patches(scene.patch_owners())).tolist()


def referring(n: int, split: str) -> list[Asked]:
    """The weak questions among ``n`` of each kind that have patches: a "no" has none."""
    weak = SPLITS[split].weak
    return [one for one in questions(n, split) if one.question.task in weak and _patches(one)]


def report(found: dict[tuple[str, int], list[float]], asked: list[Asked]) -> dict:
    """Percent with 95 % intervals: questions of a scene are drawn together."""
    scenes, place = np.unique([one.scene for one in asked], return_inverse=True)
    draws = np.random.default_rng(0).multinomial(len(scenes), np.full(len(scenes), 1 / len(scenes)), RESAMPLES)
    each = np.bincount(place)
    rows = []
    for (rule, layer), values in found.items():
        sums = np.bincount(place, weights=values)
        low, high = np.percentile(draws @ sums / (draws @ each), [2.5, 97.5])
        numbers = {"recall": np.mean(values), "low": low, "high": high}
        rows.append({"rule": rule, "layer": layer, **{k: round(100 * float(v), 2) for k, v in numbers.items()}})
    return {"rows": rows, "questions": len(asked)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="the result")
    add_questions(parser, n=200)
    parser.add_argument("--K", type=int, default=22, help="visual tokens to keep of 196 (22)")
    args = parser.parse_args(argv)
    model = load_model(parser, args)
    asked = referring(args.n, args.split)
    setup = {"split": args.split, "n": args.n, "K": args.K, "model": args.model_path.name}
    out = {**report(recalls(model, asked, args.K), asked), "setup": setup, "provenance": provenance(args.model_path)}
    write_result(args.json, out)
    for row in out["rows"]:
        print(f"layer {row['layer']}  {row['rule']:7} {row['recall']:5.1f} [{row['low']:.1f}, {row['high']:.1f}]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
