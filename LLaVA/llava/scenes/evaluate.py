"""Accuracy of the embedded checkpoint under pruning: ``python -m llava.scenes.evaluate``.

Asks ``--n`` held-out questions of each kind with every method and budget, and prints a table with counts and 95 %
intervals (Wilson for a task, bootstrap over scenes for the macro average and for paired differences from MoB).
An answer is right when greedy decoding would give exactly the expected words. ``drop-all`` removes every visual token
at the layer: what is still right then needs no picture any more.

Rules before the decoder (``codebook``, which needs ``--codebook``, ``divprune``, ``early-random``) keep K tokens for
every layer, the others for those from ``--layer`` on. Rules are joined by "+": ``codebook+mob``, ``random+mob`` and the
like leave MoB twice K to choose from.

``--split crowded`` asks about crowded scenes; words that a model was not trained with reach it as ``<unk>``. Weak
questions rest on one thing, strong ones on many; ``prompt`` minus ``visual`` is printed for both.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from llava.provenance import provenance, write_result
from llava.scenes.checkpoint import NUM_PATCHES, PROMPT, build_tokenizer, split_of
from llava.scenes.command import add_questions, load_model
from llava.scenes.packing import IGNORE, pixels
from llava.scenes.questions import Question
from llava.scenes.sharing import Shared
from llava.scenes.splits import SPLITS
from mob import MoBConfig, Pruning
from mob.budget import Budget
from mob.codebook_file import check_model, read_codebook
from mob.methods import METHODS, create, own_layers
from mob.methods.base import is_early, unknown

VANILLA, DROP_ALL = "vanilla", "drop-all"
EARLY_RANDOM = "early-random"
RESAMPLES = 2000
_GIVE_UP = 50  # scenes to look at for each question wanted; every task finds one in a few


@dataclass(frozen=True)
class DropAll(MoBConfig):
    """Keeps nothing at all, which no user may ask for: the floor of the table."""

    def budget(self, N: int) -> Budget:
        return Budget(N=N, K=0, K_p=0, k=1)


@dataclass(frozen=True)
class Asked:
    """One question with its scene's number in the split."""

    scene: int
    question: Question
    split: str = "easy"


def questions(n: int, split: str = "easy", start: int = 0) -> list[Asked]:
    """``n`` questions of each task about held-out scenes of a split, from number ``start`` on: one of each a scene."""
    kind = SPLITS[split]
    asked, counts, scene = [], dict.fromkeys(kind.tasks, 0), start
    while min(counts.values()) < n and scene < start + _GIVE_UP * n:
        drawn = kind.scene(scene)
        for number, task in enumerate(kind.tasks):
            question = kind.ask[task](drawn, np.random.default_rng([scene, 3, number]))
            if question is not None and counts[task] < n:
                asked.append(Asked(scene, question, split))
                counts[task] += 1
        scene += 1
    return asked


def batches(
    asked: list[Asked], size: int, vocabulary: str = "easy"
) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
    """Model inputs with labels on the answers, padded on the left, and the places of their questions.

    ``vocabulary``: the split that the model was trained on, whose words it knows.
    """
    tokenizer = build_tokenizer(vocabulary)
    image = tokenizer.convert_tokens_to_ids("<image>")
    for start in range(0, len(asked), size):
        part = asked[start : start + size]
        rows, labels = [], []
        for one in part:
            ids = tokenizer.encode(PROMPT.format(one.question.text))
            at = ids.index(image)
            ids[at : at + 1] = [image] * NUM_PATCHES
            answer = tokenizer.encode(one.question.answer, add_special_tokens=False) + [tokenizer.eos_token_id]
            rows.append(ids + answer)
            labels.append([IGNORE] * len(ids) + answer)
        width = max(map(len, rows))
        inputs = {
            "input_ids": torch.tensor([[tokenizer.pad_token_id] * (width - len(row)) + row for row in rows]),
            "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
            "labels": torch.tensor([[IGNORE] * (width - len(row)) + row for row in labels]),
            "pixel_values": torch.stack([pixels(SPLITS[one.split].scene(one.scene)) for one in part]),
        }
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)
        yield list(range(start, start + len(part))), inputs


@dataclass(frozen=True)
class Setup:
    """Of the rules. ``positions``: "keep" or "reindex", after rules before the decoder."""

    layer: int = 2
    codebook: str | None = None
    positions: str = "keep"


DEFAULT_SETUP = Setup()


def settings_for(method: str, K: int, seed: int, setup: Setup) -> MoBConfig | None:
    """None for the unpruned model. Random rules draw anew for every batch."""
    if method == VANILLA:
        return None
    if method == DROP_ALL:
        return DropAll(K=1, l_idx=setup.layer, method="random")
    names = ["random" if name == EARLY_RANDOM else name for name in method.split("+")]
    options: dict[str, dict] = {"random": {"seed": seed}, "codebook": {"path": setup.codebook, "policy": "count"}}
    options = {name: options.get(name, {}) for name in names}
    if names[0] == "random" and method != "random":
        options["random"]["early"] = True
    before = is_early(create(names[0], options[names[0]]))
    rules, positions = "+".join(names), setup.positions if before else None
    layer = None if own_layers(rules) or (before and len(names) == 1) else setup.layer
    own = options if len(names) > 1 else options[names[0]]
    return MoBConfig(K=K, l_idx=layer, method=rules, options=own, positions=positions)


def method_name(text: str) -> str:
    """``text``, if it names rules that can be asked. argparse.ArgumentTypeError with a suggestion otherwise."""
    if text not in (VANILLA, DROP_ALL, EARLY_RANDOM):
        for name in text.split("+"):
            if name not in METHODS:
                raise argparse.ArgumentTypeError(unknown(name))
    return text


def right(
    model, inputs: dict[str, torch.Tensor], settings: MoBConfig | None, shared: Shared | None = None
) -> list[bool]:
    """``right_under`` these settings, None for the unpruned model; ``shared`` with other rules asked the same."""
    with shared.under(settings) if shared else nullcontext(), Pruning(model, settings) if settings else nullcontext():
        return right_under(model, inputs)


@torch.inference_mode()
def right_under(model, inputs: dict[str, torch.Tensor]) -> list[bool]:
    """Whether greedy decoding gives the labelled answer, for each row: every labelled token is the likeliest one."""
    inputs = {key: value.to(model.device) for key, value in inputs.items()}
    logits = model(**inputs, use_cache=False).logits
    labels = inputs["labels"][:, 1:]
    return ((logits[:, :-1].argmax(-1) == labels) | (labels == IGNORE)).all(1).tolist()


class Scores:
    """Right or wrong by scene and task, for each (method, K). ``groups``: tasks by coupling, "weak" and "strong"."""

    def __init__(self, asked: list[Asked]):
        self.asked, self.split = asked, asked[0].split
        kind = SPLITS[self.split]
        self.tasks, self.groups = kind.tasks, {"weak": kind.weak, "strong": kind.strong}
        self.scenes = 1 + max(one.scene for one in asked)
        self.tables: dict[tuple[str, int], np.ndarray] = {}
        draws = np.random.default_rng(0).multinomial(self.scenes, np.full(self.scenes, 1 / self.scenes), RESAMPLES)
        self.draws = draws.astype(np.float64)

    def add(self, row: tuple[str, int], correct: list[bool]) -> None:
        table = np.full((self.scenes, len(self.tasks)), np.nan)
        for one, value in zip(self.asked, correct, strict=True):
            table[one.scene, self.tasks.index(one.question.task)] = value
        self.tables[row] = table

    def task(self, row: tuple[str, int], task: str) -> tuple[int, int]:
        """(right, asked)."""
        column = self.tables[row][:, self.tasks.index(task)]
        return int(np.nansum(column)), int((~np.isnan(column)).sum())

    def macro(self, row: tuple[str, int], group: str | Sequence[str] | None = None) -> tuple[float, float, float]:
        """Mean over tasks, all or those of a group or of a list, in percent, with a 95 % interval."""
        return _with_interval(np.nanmean(self._table(row, group), 0).mean(), self._resampled(row, group))

    def difference(
        self, row: tuple[str, int], other: tuple[str, int], group: str | Sequence[str] | None = None
    ) -> tuple[float, float, float]:
        """Macro of ``row`` minus that of ``other``, points, with a 95 % interval of the paired resamples."""
        exact = np.nanmean(self._table(row, group), 0).mean() - np.nanmean(self._table(other, group), 0).mean()
        return _with_interval(exact, self._resampled(row, group) - self._resampled(other, group))

    def _table(self, row: tuple[str, int], group: str | Sequence[str] | None) -> np.ndarray:
        tasks = self.tasks if group is None else self.groups[group] if isinstance(group, str) else group
        return self.tables[row][:, [self.tasks.index(task) for task in tasks]]

    def _resampled(self, row: tuple[str, int], group: str | Sequence[str] | None) -> np.ndarray:
        table = self._table(row, group)
        asked = self.draws @ ~np.isnan(table)
        return (self.draws @ np.nan_to_num(table) / np.maximum(asked, 1)).mean(1)


def _with_interval(value: float, resampled: np.ndarray) -> tuple[float, float, float]:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return 100 * float(value), 100 * float(low), 100 * float(high)


def rounded(values: tuple[float, float, float]) -> dict[str, float]:
    """(value, low, high) in points, for a result file."""
    return dict(zip(("points", "low", "high"), (round(value, 2) for value in values), strict=True))


def wilson(right_: int, asked: int) -> tuple[float, float]:
    """95 % interval of a proportion, in percent."""
    if asked == 0:
        return 0.0, 100.0
    z, p = 1.959964, right_ / asked
    centre, spread = p + z * z / (2 * asked), z * math.sqrt(p * (1 - p) / asked + z * z / (4 * asked * asked))
    scale = 100 / (1 + z * z / asked)
    return scale * (centre - spread), scale * (centre + spread)


def run(
    model,
    methods: list[str],
    budgets: list[int],
    n: int,
    *,
    setup: Setup = DEFAULT_SETUP,
    batch: int = 50,
    split: str = "easy",
) -> Scores:
    """Ask everything; vanilla and drop-all once, every other method at each budget."""
    rows = [(m, K) for m in methods if m not in (VANILLA, DROP_ALL) for K in budgets]
    rows = [(VANILLA, NUM_PATCHES)] * (VANILLA in methods) + rows + [(DROP_ALL, 0)] * (DROP_ALL in methods)
    asked = questions(n, split)
    scores, correct, shared = Scores(asked), {row: [] for row in rows}, Shared(model)
    with tqdm(total=len(rows) * len(asked), unit="question", file=sys.stderr, disable=None) as bar:
        for number, (places, inputs) in enumerate(batches(asked, batch, split_of(model))):
            for method, K in rows:
                correct[method, K] += right(model, inputs, settings_for(method, K, number, setup), shared)
                bar.update(len(places))
    for row, values in correct.items():
        scores.add(row, values)
    return scores


def table(scores: Scores) -> Table:
    out = Table(title=f"held-out {scores.split} scenes, percent right [95 % interval]")
    for name in ("method", "K", "macro", *scores.tasks):
        out.add_column(name, justify="left" if name == "method" else "right")
    for row in scores.tables:
        value, low, high = scores.macro(row)
        cells = [row[0], str(row[1]), f"{value:.1f} [{low:.1f}, {high:.1f}]"]
        for task in scores.tasks:
            count, asked = scores.task(row, task)
            low, high = wilson(count, asked)
            cells.append(f"{100 * count / asked:.1f}\n[{low:.0f}, {high:.0f}]\n{count}/{asked}")
        out.add_row(*cells)
    return out


def differences(scores: Scores, of: str = "mob") -> list[dict]:
    """One rule minus every other at the same budget."""
    out = []
    for method, K in scores.tables:
        if method != of and (of, K) in scores.tables:
            points, low, high = scores.difference((of, K), (method, K))
            out.append({"K": K, "than": method, "points": points, "low": low, "high": high})
    return out


def separation(scores: Scores) -> list[dict]:
    """``prompt`` minus ``visual`` on weak and on strong questions, at each budget that has both."""
    out = []
    for method, K in scores.tables:
        for group in scores.groups if method == "prompt" and ("visual", K) in scores.tables else ():
            points, low, high = scores.difference(("prompt", K), ("visual", K), group)
            out.append({"K": K, "coupling": group, "points": points, "low": low, "high": high})
    return out


def to_json(scores: Scores, args: argparse.Namespace) -> dict:
    rows = []
    for row in scores.tables:
        value, low, high = scores.macro(row)
        tasks = {task: dict(zip(("right", "asked"), scores.task(row, task), strict=True)) for task in scores.tasks}
        groups = {
            group: dict(zip(("macro", "low", "high"), scores.macro(row, group), strict=True)) for group in scores.groups
        }
        rows.append({"method": row[0], "K": row[1], "macro": value, "low": low, "high": high, "tasks": tasks} | groups)
    setup = {
        "split": args.split,
        "n": args.n,
        "layer": args.layer,
        "model": Path(args.model_path).name,
        "resamples": RESAMPLES,
    }
    more = {}
    if args.codebook:
        known = read_codebook(args.codebook).metadata
        setup |= {"positions": args.positions, "prototypes_sha256": known["prototypes_sha256"]}
        more = {f"{of}_minus": differences(scores, of) for of in ("codebook", "codebook+mob")}
    return {
        "rows": rows,
        "mob_minus": differences(scores),
        "prompt_minus_visual": separation(scores),
        **more,
        "setup": setup,
        **provenance(args.model_path),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = [VANILLA, "mob", "visual", "prompt", "random", DROP_ALL]
    known = f"{VANILLA}, {DROP_ALL}, {EARLY_RANDOM}, those of python -m mob.methods, or several joined by +"
    parser.add_argument("--methods", nargs="+", type=method_name, default=default, metavar="METHOD", help=known)
    parser.add_argument("--K", nargs="+", type=int, default=[65, 44, 22], help="visual tokens to keep of 196")
    add_questions(parser, n=500)
    parser.add_argument("--layer", type=int, default=2)
    parser.add_argument("--codebook", help="codebook.safetensors, for the methods with codebook in their name")
    parser.add_argument("--positions", choices=("keep", "reindex"), default="keep", help="after early rules (keep)")
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--json", type=Path, help="write the results here, with versions and hardware")
    args = parser.parse_args()
    if args.batch < 1 or not all(0 < K <= NUM_PATCHES for K in args.K):
        parser.error(f"--batch must be at least 1, --K between 1 and {NUM_PATCHES}")
    if not args.codebook and any("codebook" in method for method in args.methods):
        parser.error("--methods codebook needs --codebook, a codebook.safetensors of this model")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
    model = load_model(parser, args).to("cuda" if torch.cuda.is_available() else "cpu")
    try:
        if args.codebook:
            check_model(read_codebook(args.codebook), model, f"the codebook {args.codebook}")
    except ValueError as error:
        parser.error(str(error))
    setup = Setup(args.layer, args.codebook, args.positions)
    scores = run(model, args.methods, args.K, args.n, setup=setup, batch=args.batch, split=args.split)
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table(scores))
    for entry in differences(scores):
        console.print(
            f"K={entry['K']}: mob - {entry['than']} = {entry['points']:+.1f} points "
            f"[{entry['low']:+.1f}, {entry['high']:+.1f}]"
        )
    for entry in separation(scores):
        console.print(
            f"K={entry['K']}, {entry['coupling']} questions: prompt - visual = {entry['points']:+.1f} points "
            f"[{entry['low']:+.1f}, {entry['high']:+.1f}]"
        )
    if args.json:
        write_result(args.json, to_json(scores, args))


if __name__ == "__main__":
    main()
