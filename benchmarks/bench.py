"""Measure what pruning saves: ``python benchmarks/bench.py --shape mid``.

Encoder, pruner, prefill, time to first token, time per further token, memory and KV cache, pruned and unpruned in
turns in one process; medians with quartiles, beside what ``mob.cost`` says is possible. The last line of stdout is the
result as one line of JSON. How to read it: docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent)]

import torch  # noqa: E402
from bench_agreement import agreement  # noqa: E402
from bench_model import STAGES, Bench, Setting, measure, profile  # noqa: E402
from bench_selection import PLAIN, compare, growth  # noqa: E402
from bench_shapes import SHAPES, build, sample  # noqa: E402
from bench_timing import Watch  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from llava.provenance import provenance, write_result  # noqa: E402
from mob.methods import METHODS  # noqa: E402

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHARES = (0.05, 0.1, 0.2, 0.3, 0.5)  # of --sweep K
BATCHES, PICTURES = (1, 2, 4, 8), (1, 2, 4)


def flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--shape", choices=SHAPES, default="mid", help="random weights of this size (scenes: the tiny checkpoint)")
    add("--model-path", help="a checkpoint in the layout of transformers, instead of random weights")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--dtype", choices=DTYPES, help="by default bfloat16 on accelerators, float32 on CPUs")
    add("--attn", default="sdpa", help="attention implementation, such as sdpa, eager or flash_attention_2")
    add("--batch", type=int, default=1)
    add("--K", type=count_or_share, nargs="+", help="visual tokens to keep, or shares; several are measured in turns")
    add("--layer", type=int, default=2)
    add("--layers", type=int, help="of the decoder, instead of all, for machines that cannot hold a 7B shape")
    add("--methods", nargs="+", default=["mob"], help=f"rules: {', '.join(sorted(METHODS))}")
    add("--text", type=int, default=64, help="text tokens of the prompt")
    add("--pictures", type=int, default=1, help="pictures (or videos) of each sample")
    add("--new-tokens", type=int, default=16)
    add("--repeats", type=int, default=5)
    add("--process-time", action="store_true", help="count CPU seconds of this process, for shared machines")
    add("--json", type=Path, help="write the result here too")
    add("--yes", action="store_true", help="run a 7B shape without a GPU after all")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--sweep", choices=("K", "batch", "N"), help="several budgets, batch sizes or numbers of pictures"
    )
    mode.add_argument("--selection", action="store_true", help="selection alone against the plain ways; no model")
    mode.add_argument("--growth", action="store_true", help="selection alone: exponents in N, L and K; no model")
    mode.add_argument("--agreement", action="store_true", help="selection alone: the Triton kernel against the loop")
    mode.add_argument("--profile", action="store_true", help="torch.profiler tables of the prefill")
    return parser


def count_or_share(word: str) -> int | float:
    return float(word) if "." in word else int(word)


def check(args: argparse.Namespace) -> None:
    """ValueError for what would fail late, or fill this machine's memory."""
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {args.device}: this torch sees no GPU, use --device cpu")
    if args.process_time and device.type != "cpu":
        raise ValueError("--process-time counts CPU seconds only: leave it out on accelerators")
    if args.layers is not None and (args.model_path or args.shape == "scenes" or args.layers <= args.layer):
        raise ValueError("--layers is for random weights, and more than --layer")
    if args.repeats < 1 or args.new_tokens < 2:
        raise ValueError("use --repeats 1 and --new-tokens 2 at least")
    if unknown := [name for name in args.methods if name not in METHODS]:
        raise ValueError(f"--methods {unknown[0]}: one rule each, of {', '.join(sorted(METHODS))}")
    no_model = args.selection or args.growth or args.agreement
    if (
        SHAPES[args.shape].big
        and device.type != "cuda"
        and not (no_model or args.yes or args.model_path or args.layers)
    ):
        raise ValueError(
            f"--shape {args.shape} has 7 billion weights: on a CPU that is 14 to 28 GB and minutes for every run. Use "
            "--device cuda, or --shape mid, or a part of it by --layers 8, or --yes to run it all the same"
        )


def settings_of(args: argparse.Namespace) -> list[Setting]:
    budgets = SHARES if args.sweep == "K" and not args.K else args.K or (SHAPES[args.shape].K,)
    return [Setting(method, K, args.layer) for method in args.methods for K in budgets]


def benches(args: argparse.Namespace, watch: Watch):
    """The batches that a run measures, one after the other, on one model."""
    dtype = DTYPES[args.dtype]
    model = build(args.shape, args.model_path, watch.device, dtype, args.attn, args.layers)
    for batch in BATCHES if args.sweep == "batch" else (args.batch,):
        for pictures in PICTURES if args.sweep == "N" else (args.pictures,):
            inputs = sample(model.config, batch=batch, pictures=pictures, text=args.text, dtype=dtype)
            with torch.inference_mode():
                bench = Bench(model, inputs, watch, args.new_tokens)
            yield bench


def result(args: argparse.Namespace, console: Console) -> dict:
    """What was measured, JSON-ready; tables go to the console."""
    watch = Watch(torch.device(args.device), args.process_time)
    if args.selection:
        rows = compare(watch, args.repeats, batch=args.batch)
        console.print(selection_table(rows))
        return {"kind": "selection", "rows": rows}
    if args.growth:
        rows = growth(watch, args.repeats)
        console.print(growth_table(rows))
        return {"kind": "growth", "rows": rows}
    if args.agreement:
        rows = agreement(watch.device)
        console.print(agreement_table(rows))
        return {"kind": "agreement", "rows": rows, "right": all(row["identical"] and not row["waits"] for row in rows)}
    settings = settings_of(args)
    if args.profile:
        text = profile(next(benches(args, watch)), settings[0])
        console.print(text, markup=False, highlight=False, soft_wrap=True)
        return {"kind": "profile", "tables": text}
    rows = [row for bench in benches(args, watch) for row in measure(bench, settings, args.repeats)]
    console.print(model_table(rows))
    return {"kind": "model", "rows": rows}


def model_table(rows: list[dict]) -> Table:
    table = Table(title="milliseconds, median \\[quartiles]; in brackets after it the share of the unpruned run")
    heads = (
        "rule",
        "K of N",
        "batch",
        "encoder",
        "pruner",
        "prefill",
        "first token",
        "per token",
        "KV",
        "peak",
        "ideal",
    )
    for head in heads:
        table.add_column(head, justify="left" if head == "rule" else "right")
    for row in rows:
        shares = row.get("shares", {})
        cells = [_cell(row[f"{name}_ms"], shares.get(name)) for name in STAGES]
        ideal = "" if not shares else f"{row['ideal_prefill_share']:.2f}, {row['ideal_reached'] or 0:.0%} reached"
        table.add_row(
            row["method"],
            f"{row['K']} of {row['N']}",
            str(row["batch"]),
            _cell(row.get("encoder_ms")),
            _cell(row.get("pruner_ms")),
            *cells,
            _size(row["kv_bytes"]) + (" =" if row["kv_bytes"] == row["kv_bytes_predicted"] else " not as predicted"),
            _size(row["peak_bytes"]),
            ideal,
        )
    return table


def selection_table(rows: list[dict]) -> Table:
    table = Table(
        title=f"selection, batch {rows[0]['batch']}, d = {rows[0]['width']}: milliseconds, and how many times "
        "slower the plain ways are"
    )
    for head in ("N, L, K", "data", "mob", *PLAIN, *(f"{name} / mob" for name in PLAIN), "same indices"):
        table.add_column(head, justify="right")
    for row in rows:
        times = [_cell(row["ms"][name]) for name in ("mob", *PLAIN)]
        slower = [f"{row['times_slower'][name]['median']:.2f}" for name in PLAIN]
        size = f"{row['N']}, {row['L']}, {row['K']}"
        table.add_row(size, row["data"], *times, *slower, "yes" if row["identical"] else "NO")
    return table


def agreement_table(rows: list[dict]) -> Table:
    table = Table(title="selection: one launch against the loop")
    for head in ("N, L, K", "batch", "dtype", "data", "Triton", "same indices", "waits", "not chosen by a CPU"):
        table.add_column(head, justify="right")
    for row in rows:
        table.add_row(
            f"{row['N']}, {row['L']}, {row['K']}",
            str(row["batch"]),
            row["dtype"],
            row["data"],
            "yes" if row["kernel"] else "no",
            "yes" if row["identical"] else "NO",
            row["waits"] or "-",
            str(row.get("differ_from_cpu", "")),
        )
    return table


def growth_table(rows: list[dict]) -> Table:
    table = Table(title="selection: time ~ size ^ exponent")
    for head in ("along", "from .. to", "ms", "exponent", "of the last two", "of memory"):
        table.add_column(head, justify="right")
    for row in rows:
        first, last = row["points"][0], row["points"][-1]
        memory = row["memory_exponent"]
        table.add_row(
            row["axis"],
            f"{first[row['axis']]} .. {last[row['axis']]}",
            f"{first['ms']['median']:.1f} .. {last['ms']['median']:.1f}",
            f"{row['time_exponent']:.2f}",
            f"{row['time_exponent_of_last_two']:.2f}",
            "-" if memory is None else f"{memory:.2f}",
        )
    return table


def _cell(value: dict | None, share: dict | None = None) -> str:
    if value is None:
        return ""
    text = f"{value['median']:.1f} \\[{value['low']:.1f}, {value['high']:.1f}]"
    return text if share is None else f"{text} ({share['median']:.2f})"


def _size(count: int | None) -> str:
    return "-" if count is None else f"{count / 2**20:.1f} MiB"


def main(argv: list[str] | None = None) -> int:
    parser = flags()
    args = parser.parse_args(argv)
    console = Console(width=None if sys.stdout.isatty() else 190)
    try:
        check(args)
        args.dtype = args.dtype or ("float32" if torch.device(args.device).type == "cpu" else "bfloat16")
        found = result(args, console)
    except ValueError as error:
        parser.error(str(error))
    setup = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    whole = {**found, "setup": setup, "provenance": provenance(args.model_path)}
    if args.json:
        write_result(args.json, whole)
    print(json.dumps(whole, allow_nan=False))
    return 0 if found.get("right", True) else 1


if __name__ == "__main__":
    sys.exit(main())
