"""Every rule at every budget on scenes, against MoB: ``python benchmarks/compare.py --json FILE``.

Each rule is asked the same held-out questions twice: with K tokens left at its end, and with the K at which it has as
many visual tokens a layer, on the mean, as MoB has with its K (rules that prune before the decoder or in several
layers cost something else at equal K). Answers are kept in ``--work``: killed, or ended by ``--minutes``, the same
command continues. ``scripts/compare.sh`` runs both splits; ``make_tables.py`` writes the tables and the plot.

How rules are named, and what is asked, is in ``compare_rows.py``; the threshold of ``mob:auto`` comes from questions
about other scenes.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
import time
from pathlib import Path

import torch
from compare_answers import Answers
from compare_report import above, centres, report
from compare_rows import BATCH, BUDGETS, LAYER, Settings, Way, is_before, read, rules, ways
from compare_times import TIMED, TIMED_BATCH, times
from tqdm import tqdm

from llava.provenance import provenance, write_result
from llava.scenes.checkpoint import NUM_PATCHES, split_of
from llava.scenes.command import add_questions, load_model
from llava.scenes.evaluate import DROP_ALL, VANILLA, Asked, Setup, batches, questions, right
from llava.scenes.sharing import Shared
from mob import MoBConfig, Pruning
from mob.coupling import Modes, split

CALIBRATION = 900_000, 100  # the first scene that is asked about for the threshold, and questions of each kind
TOGETHER = 16  # rows whose answers are written at once


@torch.inference_mode()
def calibrated(model, split_: str) -> Modes:
    """What ``python -m mob.coupling calibrate`` finds, from questions about other scenes."""
    start, n = CALIBRATION
    etas = []
    for _, inputs in batches(questions(n, split_, start), BATCH, split_of(model)):
        with Pruning(model, MoBConfig(K=NUM_PATCHES // 9, l_idx=LAYER), record=True) as pruning:
            model(**inputs)
        etas += [record.eta for record in pruning.records]
    return split(etas)


def ask(
    model, asked: list[Asked], rows: list[tuple[str, int]], answers: Answers, settings: Settings, until: float
) -> bool:
    """Ask what has no answers yet, some rules together that share what they can; False: out of time."""
    missing = [row for row in rows if answers.get(row) is None]
    with tqdm(total=len(missing) * len(asked), unit="question", file=sys.stderr, disable=None) as bar:
        for start in range(0, len(missing), TOGETHER):
            if time.monotonic() > until:
                return False
            part = missing[start : start + TOGETHER]
            correct: dict[tuple[str, int], list[bool]] = {row: [] for row in part}
            shared = Shared(model)
            for number, (places, inputs) in enumerate(batches(asked, BATCH, split_of(model))):
                for method, K in part:
                    correct[method, K] += right(model, inputs, settings.of(method, K, number), shared)
                    bar.update(len(places))
            for row, values in correct.items():
                answers.put(row, values)
    return True


def marks(settings: Settings, found: list[Way]) -> dict[str, str]:
    """What the answers of a rule depend on besides model, questions and K."""
    out = {"mob:auto": f"tau{settings.tau:.6f}"}
    if book := settings.setup.codebook:
        out["codebook"] = hashlib.sha256(Path(book).read_bytes()).hexdigest()[:8]
    if settings.setup.positions != "keep":
        early = {way.method for way in found if is_before(read(way.method)[0][0])}
        out |= {name: "-".join(filter(None, [out.get(name), settings.setup.positions])) for name in early}
    return out


def flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="the result")
    parser.add_argument("--work", type=Path, default=Path("runs/compare"), help="answers so far (runs/compare)")
    add_questions(parser, n=500)
    parser.add_argument("--codebook", type=Path, help="codebook.safetensors of this model: its rule takes part")
    parser.add_argument("--K", type=int, nargs="+", default=list(BUDGETS), help="MoB's budgets, of 196")
    parser.add_argument("--methods", nargs="+", help="rules beside mob (all)")
    parser.add_argument("--positions", choices=("keep", "reindex"), default="keep", help="after early rules (keep)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop asking after so many; go on later")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = flags().parse_args(argv)
    known = rules(args.codebook)
    if unknown := [name for name in args.methods or [] if name not in known]:
        flags().error(f"--methods {unknown[0]}: choose of {', '.join(known)}")
    until = time.monotonic() + 60 * args.minutes
    model = load_model(flags(), args)
    layers = model.config.text_config.num_hidden_layers
    methods = ["mob", *(name for name in args.methods or known if name != "mob")]
    found = ways(methods, args.K, layers)
    asked = questions(args.n, args.split)
    source = provenance(args.model_path)
    about = hashlib.sha256(repr((source["weights_sha256"], args.split, args.n)).encode()).hexdigest()[:12]
    modes = calibrated(model, args.split) if "mob:auto" in methods else None
    tau, spread = (modes.tau, modes.spread) if modes else (0.0, 0.0)
    settings = Settings(Setup(LAYER, args.codebook and str(args.codebook), args.positions), tau, spread)
    answers = Answers(args.work / f"{args.split}-{about}", source["commit"], marks(settings, found))
    rows = list(dict.fromkeys([(VANILLA, NUM_PATCHES), (DROP_ALL, 0), *(way.row for way in found)]))
    if not ask(model, asked, rows, answers, settings, until):
        print(f"out of time: the same command continues (answers are in {answers.folder})", file=sys.stderr)
        return 3
    took = times(model, asked, rows, settings.of)
    for row, counts in centres(model, asked, rows, settings).items():
        took[row] |= counts
    values = {"split": args.split, "n": args.n, "layer": LAYER, "batch": BATCH, "model": args.model_path.name}
    values["timed"] = {"batches": TIMED, "batch": TIMED_BATCH}
    values |= {"positions": args.positions}
    if modes:
        values |= {"tau": tau, "spread": spread, "valley": round(modes.valley, 3), "not_two_modes": modes.reason}
        values["above_tau"] = above(model, asked, tau)
    out = {**report(asked, found, answers, took, layers), "setup": values, "provenance": source}
    write_result(args.json, out)
    for row in out["rows"]:
        minus = row.get("minus_mob")
        print(
            f"{row['budget']:3} by {row['by']:4}  {row['method']:14} K={row['K']:3} {row['mean_tokens']:6.1f} a layer "
            f"{row['macro']['points']:5.1f}" + (f"  {minus['points']:+5.1f}  p={minus['p']:.2g}" if minus else "")
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
