"""What training under pruning gives: ``python benchmarks/pruned_training.py --work /tmp/pruned_training``.

Three trainings from one start, on the same dialogues in the same order: with all visual tokens, pruned to N/9, and
with N, N/3 or N/9 drawn for every step. Then each answers held-out questions with N, N/3 and N/9 tokens, and steps are
timed.

The start is the embedded checkpoint with decoder layers 2 to 5 as new: the layers behind the one that MoB prunes at
know nothing, while tower, projector, words and the first two layers, which the choice of tokens rests on, stay as they
were trained. Trained are projector and language model, by ``llava.train`` and with no loss but the answers' (6
questions about each picture in one dialogue).

Everything lies in ``--work`` and is continued from there; variants may run beside each other (``--variants``). The
result is written once all are done. One thread, about 30 CPU minutes for two seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration

from llava.provenance import provenance, write_result
from llava.scenes.checkpoint import NUM_PATCHES, PATH, build, build_processor
from llava.scenes.dialogues import VERSION, write
from llava.scenes.evaluate import DEFAULT_SETUP, DROP_ALL, RESAMPLES, VANILLA, Scores, questions, run
from llava.scenes.questions import TASKS
from llava.train.arguments import parse
from llava.train.train import build_trainer, train

RESULT = Path(__file__).parent / "results" / "pruned_training.json"
BUDGETS = (NUM_PATCHES, 65, 22)  # N, N/3, N/9
LAYER = DEFAULT_SETUP.layer
VARIANTS = {
    "full": [],
    "pruned": ["--mob_K", str(BUDGETS[-1])],
    "random": ["--mob_random_K", *map(str, BUDGETS)],
}
# Files of answers: at each budget, and what says how much the choice of tokens, and the tokens, matter at all.
ASKED = {
    "right.json": ([VANILLA, "mob"], list(BUDGETS[1:])),
    "controls.json": (["random", DROP_ALL], [BUDGETS[-1]]),
}
QUESTIONS, BATCH, RATE = 6, 16, 1e-3


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for data, runs and answers")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], help="of the new layers and of the order")
    parser.add_argument("--steps", type=int, default=150, help=f"of {BATCH} dialogues each")
    parser.add_argument("--first-new", type=int, default=LAYER, help=f"first decoder layer that is as new ({LAYER})")
    parser.add_argument("--n", type=int, default=200, help="held-out questions of each of the nine kinds")
    parser.add_argument("--rounds", type=int, default=15, help="timed steps of each budget")
    parser.add_argument("--json", type=Path, default=RESULT)
    return parser.parse_args()


def start(folder: Path, seed: int, first_new: int) -> Path:
    """The common start, as a folder of transformers."""
    if not (folder / "model.safetensors").exists():
        model = LlavaForConditionalGeneration.from_pretrained(PATH, dtype=torch.float32)
        layers, new = (m.model.language_model.layers for m in (model, build(seed)))
        for index in range(first_new, len(layers)):
            layers[index].load_state_dict(new[index].state_dict())
        part = folder.with_name(f"start.{os.getpid()}")
        build_processor().save_pretrained(part)
        model.save_pretrained(part)
        try:
            part.rename(folder)
        except OSError:  # a variant that runs beside this one was first
            shutil.rmtree(part)
    return folder


def flags(args: argparse.Namespace, variant: str, seed: int) -> list[str]:
    """The command line of a training, for ``llava.train``."""
    folder = args.work / f"seed{seed}"
    return [
        *(
            "--model_name_or_path",
            str(start(folder / "start", seed, args.first_new)),
            "--output_dir",
            str(folder / variant),
        ),
        *("--data_path", str(args.work / "data" / "data.json"), "--version", VERSION),
        *("--mm_tunable_parts", "mm_mlp_adapter,mm_language_model", "--use_cpu", "True"),
        *("--max_steps", str(args.steps), "--per_device_train_batch_size", str(BATCH), "--seed", str(seed)),
        *("--learning_rate", str(RATE), "--adam_beta2", "0.98", "--lr_scheduler_type", "cosine"),
        *("--warmup_steps", "20", "--logging_steps", "10", "--save_strategy", "steps", "--save_steps", "25"),
        *("--save_total_limit", "1", "--report_to", "none", "--dataloader_pin_memory", "False"),
        *VARIANTS[variant],
    ]


def answers(args: argparse.Namespace, variant: str, seed: int) -> None:
    """Train one variant and let it answer, as far as that is not done."""
    folder = args.work / f"seed{seed}" / variant
    if not (folder / "model.safetensors").exists():
        train(argv=flags(args, variant, seed))
    for name, (methods, budgets) in ASKED.items():
        if (folder / name).exists():
            continue
        model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        scores = run(model, methods, budgets, args.n)
        tables = {
            str(K) if method in (VANILLA, "mob") else method: np.nan_to_num(table, nan=-1).tolist()
            for (method, K), table in scores.tables.items()
        }
        part = folder / f"{name}.part"
        part.write_text(json.dumps(tables))
        part.replace(folder / name)


def seconds(args: argparse.Namespace) -> dict[str, list[float]]:
    """CPU seconds of a step (forward, backward, update; pictures already decoded) at each budget, in turn."""
    trainers = {}
    for K in BUDGETS:
        more = ["--mob_K", str(K)] if K < NUM_PATCHES else []
        trainer = build_trainer(*parse([*flags(args, "full", args.seeds[0]), *more]))
        trainer.current_gradient_accumulation_steps = 1  # set by its loop, which is not run here
        trainers[K] = trainer, trainer.create_optimizer()
    dataset, collate = trainers[NUM_PATCHES][0].train_dataset, trainers[NUM_PATCHES][0].data_collator
    taken: dict[str, list[float]] = {str(K): [] for K in BUDGETS}
    for number in range(args.rounds + 1):  # the first warms up
        batch = collate([dataset[number * BATCH + i] for i in range(BATCH)])
        for K, (trainer, optimizer) in trainers.items():
            began = time.process_time()
            trainer.training_step(trainer.model, dict(batch))
            optimizer.step()
            optimizer.zero_grad()
            if number:
                taken[str(K)].append(time.process_time() - began)
    return taken


def interval(values: list[float]) -> dict[str, float]:
    """Median, with a 95 % bootstrap interval."""
    draws = np.random.default_rng(0).choice(values, (RESAMPLES, len(values)))
    low, high = np.percentile(np.median(draws, 1), [2.5, 97.5])
    return {"median": statistics.median(values), "low": float(low), "high": float(high)}


def macro(tables: list[np.ndarray], draws: np.ndarray) -> tuple[float, np.ndarray]:
    """Percent right, mean of kinds and then of seeds, and its resamples over scenes; -1 is not asked."""
    values, resampled = [], []
    for table in tables:
        asked, correct = table >= 0, np.maximum(table, 0)
        values.append((correct.sum(0) / asked.sum(0)).mean())
        resampled.append((draws @ correct / np.maximum(draws @ asked, 1)).mean(1))
    return 100 * float(np.mean(values)), 100 * np.mean(resampled, 0)


def bounds(value: float, resampled: np.ndarray) -> dict[str, float]:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return {"points": value, "low": float(low), "high": float(high)}


def result(args: argparse.Namespace, taken: dict[str, list[float]]) -> dict:
    """Rows for every variant and budget, and differences from the variant trained with all tokens."""
    draws = Scores(questions(args.n)).draws
    found, rows, controls = {}, [], []
    for variant in VARIANTS:
        tables = [
            {key: np.array(table) for name in ASKED for key, table in json.loads((folder / name).read_text()).items()}
            for folder in (args.work / f"seed{seed}" / variant for seed in args.seeds)
        ]
        for K in BUDGETS:
            each = [table[str(K)] for table in tables]
            value, resampled = found[variant, K] = macro(each, draws)
            mine = bounds(value, resampled) | {"seeds": [macro([one], draws)[0] for one in each]}
            mine["tasks"] = {task: macro([t[:, [i]] for t in each], draws)[0] for i, task in enumerate(TASKS)}
            if variant != "full":
                base, its = found["full", K]
                mine["more_than_full"] = bounds(value - base, resampled - its)
            rows.append({"trained": variant, "K": K, **mine})
        for method, K in (("random", BUDGETS[-1]), (DROP_ALL, 0)):
            value = bounds(*macro([table[method] for table in tables], draws))
            controls.append({"trained": variant, "method": method, "K": K, **value})
    setup = {"steps": args.steps, "dialogues": BATCH, "questions": QUESTIONS, "rate": RATE, "seeds": args.seeds}
    setup |= {"n": args.n, "layer": LAYER, "first_new": args.first_new, "budgets": BUDGETS, "resamples": RESAMPLES}
    step = {K: interval(values) for K, values in taken.items()}
    step["random"] = interval([statistics.mean(three) for three in zip(*taken.values(), strict=True)])
    return {"rows": rows, "controls": controls, "cpu_seconds_a_step": step, "setup": setup, **provenance(PATH)}


def main() -> None:
    args = parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    torch.set_num_threads(1)
    write(args.work / "data", args.steps * BATCH, QUESTIONS)
    for seed in args.seeds:
        for variant in args.variants:
            answers(args, variant, seed)
    if set(args.variants) != set(VARIANTS):
        return
    timed = args.work / "seconds.json"
    if not timed.exists():
        timed.write_text(json.dumps(seconds(args)))
    write_result(args.json, result(args, json.loads(timed.read_text())))
    print(args.json)


if __name__ == "__main__":
    main()
