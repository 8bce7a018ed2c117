"""Codebooks of redundant visual tokens: measure them, cluster them, look at them.

``build`` is ``measure`` and ``cluster`` in one. A command that was stopped goes on when it is given again.
Results go to standard output, everything else to standard error. Exit code 2 and one line: whatever is wrong.
"""

from __future__ import annotations

import argparse
import sys

from redundancy_codebook.commands import COMMANDS, say
from redundancy_codebook.divergence import DIVERGENCES
from redundancy_codebook.experiment import ABLATIONS
from redundancy_codebook.measuring import Settings
from redundancy_codebook.pictures import TRAINING_SCENES
from redundancy_codebook.sampling import SAMPLINGS


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m redundancy_codebook", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    measure = commands.add_parser("measure", help="how much each patch of many pictures says, into a folder")
    measure.add_argument("--out", required=True, help="folder of the run; one that was begun goes on")
    _add_model(measure)
    _add_pictures(measure)
    _add_experiment(measure)

    cluster = commands.add_parser("cluster", help="a codebook from a run")
    cluster.add_argument("run", help="the --out of measure")
    cluster.add_argument("--out", help="file to write (default: codebook.safetensors in the run's folder)")
    _add_recipe(cluster)

    build = commands.add_parser("build", help="measure and cluster; writes OUT/codebook.safetensors")
    build.add_argument("--out", required=True, help="folder")
    _add_model(build)
    _add_pictures(build)
    _add_experiment(build)
    _add_recipe(build)

    inspect = commands.add_parser("inspect", help="numbers about a codebook")
    inspect.add_argument("codebook")
    inspect.add_argument("--json", action="store_true", help="all of it, with its metadata")

    legacy = commands.add_parser("import-legacy", help="a codebook of the original release (.pt) as safetensors")
    legacy.add_argument("source", metavar="SRC")
    legacy.add_argument("target", metavar="DST")
    legacy.add_argument("--ids", help="JSON list of picture ids (default: beside SRC, if it is there)")
    _add_model(legacy, "the model that it belongs to: its projector is noted, and others are refused from then on")

    calibrate = commands.add_parser("calibrate", help="how many tokens each theta keeps of your pictures")
    calibrate.add_argument("codebook")
    calibrate.add_argument("--target", type=float, help="also say which theta keeps so many tokens (or that share)")
    calibrate.add_argument("--thetas", help="such as 0.3,0.45,0.6 (default: 0.05 to 1)")
    calibrate.add_argument("--out", help="file to write (default: calibration.json beside the codebook)")
    calibrate.add_argument("--crop", action="store_true", help="crop pictures where the checkpoint would pad them")
    _add_model(calibrate)
    _add_pictures(calibrate)

    translate = commands.add_parser("translate", help="the published settings in a config.json, as MoB_config")
    translate.add_argument("config", help="config.json")
    translate.add_argument("--codebook", help="the codebook.safetensors to use")
    translate.add_argument("--trust-path", action="store_true", help="use the path that the config names")

    _add_plots(commands.add_parser("plot", help="figures"))
    args = parser.parse_args(argv)
    args.words = sys.argv[1:] if argv is None else argv  # what was typed, for the log
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    try:
        COMMANDS[args.command](args)
    except ValueError as error:
        say("error: " + " ".join(str(error).split()))
        return 2
    except KeyboardInterrupt:
        say("stopped; the same command goes on from here")
        return 130
    return 0


def _add_model(parser: argparse.ArgumentParser, more: str = "default: the embedded LLaVA") -> None:
    group = parser.add_argument_group("model")
    group.add_argument("--model-path", help=f"folder or hub name ({more})")
    group.add_argument("--device", default="cuda", help="cuda, mps or cpu (default: the best there is)")
    dtypes = ("float16", "bfloat16", "float32")
    group.add_argument("--dtype", choices=dtypes, default="float16", help="float16, the default, is float32 on a CPU")
    group.add_argument("--attention", choices=("sdpa", "eager", "flash_attention_2"), help="default: sdpa")


def _add_pictures(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("pictures")
    group.add_argument("--images", nargs="+", metavar="PATH", help="files and folders; folders are domains")
    group.add_argument("--coco", help="Karpathy's dataset_coco.json, with --coco-root")
    group.add_argument("--coco-root", help="folder that holds train2014 and val2014")
    group.add_argument("--coco-split", default="train")
    group.add_argument("--scenes", type=int, metavar="N", help="pictures drawn for the embedded LLaVA")
    group.add_argument(
        "--first-scene", type=int, default=TRAINING_SCENES, help=f"seed of the first ({TRAINING_SCENES})"
    )
    group.add_argument("--first", type=int, metavar="N", help="only the first N pictures")


def _add_experiment(parser: argparse.ArgumentParser) -> None:
    plain = Settings()
    group = parser.add_argument_group("experiment")
    group.add_argument("--question", action="append", help="asked about every picture; several: the largest counts")
    group.add_argument("--template", help="whole prompt with <image> and {question} (default: the checkpoint's own)")
    group.add_argument("--conv-mode", help="name of a conversation template instead")
    group.add_argument("--answer", default="", help='beginning of the answer, such as "A"')
    group.add_argument("--sampling", choices=SAMPLINGS, default=plain.sampling)
    group.add_argument("--count", type=int, default=plain.count, help="patches of --sampling random")
    group.add_argument("--ranks", help="of --sampling cls, such as 1-24,37-44 (default: the published 96)")
    group.add_argument("--seed", type=int, default=plain.seed, help="of --sampling random, and of the clustering")
    group.add_argument("--ablation", choices=ABLATIONS, default=plain.ablation, help="what replaces a token")
    group.add_argument("--pad-id", type=int, help="word of --ablation pad (default: the model's padding)")
    group.add_argument("--no-newline", action="store_true", help="leave out the newline token after the picture")
    group.add_argument("--crop", action="store_true", help="crop pictures where the checkpoint would pad them")
    group.add_argument("--repeat", type=int, default=plain.repeat, help="times that a token alone is given")
    group.add_argument("--head-topk", type=int, default=plain.head_topk)
    group.add_argument("--divergence-topk", type=int, default=plain.divergence_topk)
    group.add_argument("--tokens-per-pass", type=int, default=plain.tokens_per_pass, help="lower it to save memory")
    group.add_argument("--no-bar", action="store_true", help="no progress bar")


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    from redundancy_codebook.building import PRESETS

    group = parser.add_argument_group("choice of prototypes")
    group.add_argument(
        "--preset", choices=PRESETS, default="quantiles", help="numbers of a published build, or quantiles"
    )
    group.add_argument("--p-max", type=float)
    group.add_argument("--J-max", type=float)
    group.add_argument("--p-quantile", type=float)
    group.add_argument("--J-quantile", type=float)
    group.add_argument("--divergence", choices=DIVERGENCES)
    group.add_argument("--local-weight", type=float)
    group.add_argument("--global-weight", type=float)
    group.add_argument("--picture-clusters", type=int)
    group.add_argument("--picture-largest", type=int)
    group.add_argument("--clusters", type=int)
    group.add_argument("--min-pictures", type=float, help="a number, or a share below 1")
    group.add_argument("--dedup", type=float, help="cosine; 1: only equal rows (default)")
    if not any(action.dest == "seed" for action in parser._actions):
        group.add_argument("--seed", type=int, help="of the clustering")


def _add_plots(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="figure", required=True, metavar="FIGURE")
    maps = kinds.add_parser("maps", help="p_top1 and J over a picture of a run")
    maps.add_argument("run")
    maps.add_argument("--number", type=int, default=0, help="which picture, from 0")
    maps.add_argument("--picture", help="its file, where the run does not know it")
    maps.add_argument("--divergence", choices=DIVERGENCES, default=DIVERGENCES[0])
    book = kinds.add_parser("codebook", help="the prototypes in the plane (t-SNE, or PCA without scikit-learn)")
    book.add_argument("codebook")
    book.add_argument("--seed", type=int, default=0)
    keep = kinds.add_parser("keep", help="what a codebook keeps of pictures")
    keep.add_argument("codebook")
    keep.add_argument("--thetas", default="0.3,0.45,0.6")
    keep.add_argument("--crop", action="store_true")
    _add_model(keep)
    _add_pictures(keep)
    summary = kinds.add_parser("summary", help="a run in one figure")
    summary.add_argument("run")
    _add_recipe(summary)
    for one in (maps, book, keep, summary):
        one.add_argument("--out", required=True, help="file to write, such as figure.png")
