"""What the commands do, given parsed arguments."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from mob.codebook_file import check_model, read_codebook
from mob.media import load_image
from redundancy_codebook import building, calibration, inspection, measuring, models, plots
from redundancy_codebook.legacy import import_legacy
from redundancy_codebook.pictures import Picture, from_coco, from_files, from_scenes
from redundancy_codebook.runs import open_run
from redundancy_codebook.sampling import parse_ranks
from redundancy_codebook.translate import translate

CODEBOOK, CALIBRATION, LOG = "codebook.safetensors", "calibration.json", "build.log"
_RECIPE = tuple(field.name for field in dataclasses.fields(building.Recipe) if field.name != "neighbours")


def say(text: str) -> None:
    print(text, file=sys.stderr)


def measure(args: Any) -> None:
    run = _measure(args, Path(args.out))
    say(f"measured {run.tested} tokens of {len(run.lines)} pictures: {run.folder}")


def cluster(args: Any) -> None:
    target = Path(args.out) if args.out else Path(args.run) / CODEBOOK
    _cluster(open_run(args.run), args, target)


def build(args: Any) -> None:
    recipe(args)  # before the long part
    note = _logging_to(Path(args.out) / LOG)
    note(f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC: redundancy_codebook {shlex.join(args.words)}")
    note(", ".join(f"{name} {number}" for name, number in measuring.versions().items()))
    began, used = time.monotonic(), time.process_time()
    run = _measure(args, Path(args.out) / "run")
    note(
        f"measured: {run.tested} tokens of {len(run.lines)} pictures; this call took {time.monotonic() - began:.0f} s, "
        f"{time.process_time() - used:.0f} s of CPU time"
    )
    _cluster(run, args, Path(args.out) / CODEBOOK, note)


def _logging_to(file: Path) -> Callable[[str], None]:
    """``say`` that also appends to a file: a build that was stopped leaves the notes of all its calls."""

    def note(text: str) -> None:
        say(text)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a") as log:
                log.write(text + "\n")
        except OSError as error:
            raise ValueError(f"cannot write {file} ({error.strerror}): choose another --out") from error

    return note


def _measure(args: Any, folder: Path) -> Any:
    found = pictures(args)
    settings = experiment(args)
    return measuring.run(subject(args), found, folder, settings, bar=not args.no_bar)


def _cluster(run: Any, args: Any, target: Path, note: Callable[[str], None] = say) -> None:
    book, _ = building.build(run, recipe(args), note)
    book.save(target)
    note(f"codebook: {target}")


def inspect(args: Any) -> None:
    book = read_codebook(args.codebook)
    numbers = inspection.describe(book)
    if args.json:
        print(json.dumps({"numbers": numbers, "metadata": book.metadata}, indent=1))
    else:
        print(inspection.render(numbers, book.metadata))


def legacy(args: Any) -> None:
    if not args.target.endswith(".safetensors"):
        raise ValueError(f"{args.target}: name a file that ends in .safetensors")
    identity = models.identity(subject(args)) if args.model_path else None
    book = import_legacy(args.source, args.ids, identity)
    book.save(args.target)
    known = book.metadata["imported"]["released_for"]
    say(
        f"{len(book)} prototypes of width {book.D}: {args.target}"
        + (f" (the released one for {known})" if known else "")
    )
    if identity is None:
        say("note: without --model-path it is not tied to a model's weights, and only its width will be checked")
    say("note: prototypes are activations of a model on its pictures; the licences of both apply")


def calibrate(args: Any) -> None:
    book = read_codebook(args.codebook)
    found = pictures(args)
    thetas = _numbers(args.thetas) if args.thetas else calibration.THETAS
    one = subject(args)
    check_model(book, one.model, f"the codebook {args.codebook}")
    values = calibration.scores(one, book, found, args.crop)
    tables = calibration.table(values, [picture.domain for picture in found], thetas)
    print(calibration.render(tables))
    if args.target is not None:
        print(f"theta {calibration.theta_for(values, args.target):.4f} keeps {args.target:g} on average")
    target = Path(args.out) if args.out else Path(args.codebook).with_name(CALIBRATION)
    calibration.save(target, Path(args.codebook).name, book, tables, len(found))
    say(f"calibration: {target}")


def translated(args: Any) -> None:
    try:
        config = json.loads(Path(args.config).read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{args.config} cannot be read ({error}): give a checkpoint's config.json") from None
    if not isinstance(config, dict):
        raise ValueError(f"{args.config} holds no config: give a checkpoint's config.json")
    print(json.dumps(translate(config, args.codebook, args.trust_path)))


def plot(args: Any) -> None:
    _FIGURES[args.figure](args)
    say(f"figure: {args.out}")


def _maps(args: Any) -> None:
    run = open_run(args.run)
    if not 0 <= args.number < len(run.lines):
        raise ValueError(f"--number {args.number}: the run has pictures 0 to {len(run.lines) - 1}")
    image = load_image(args.picture) if args.picture else _picture(run.lines[args.number]["picture"])
    plots.save_maps(run, args.number, image, args.out, args.divergence)


def _picture(name: str) -> Any:
    """A picture by its name in a run: a file, or the seed of a scene."""
    if name.startswith("scene-"):
        return from_scenes(1, int(name.removeprefix("scene-")))[0].load()
    if not Path(name).is_file():
        raise ValueError(f"the run names its picture {name!r}, which is no file here: give --picture")
    return load_image(name)


def _codebook(args: Any) -> None:
    kind = plots.save_codebook(read_codebook(args.codebook), args.out, args.seed)
    if kind == "PCA":
        say("note: PCA, since scikit-learn is not installed (pip install scikit-learn gives t-SNE)")


def _keep(args: Any) -> None:
    book, found, thetas = read_codebook(args.codebook), pictures(args), _numbers(args.thetas)
    one = subject(args)
    values = calibration.scores(one, book, found, args.crop)
    images = [picture.load() for picture in found]
    shown = [(image, models.seen(one, image.size, args.crop)) for image in images]
    plots.save_masks(shown, values, one.grid, thetas, args.out)


def _summary(args: Any) -> None:
    run, chosen = open_run(args.run), recipe(args)
    _, stages = building.build(run, chosen)
    plots.save_summary(run, stages, args.out, chosen.divergence)


_FIGURES = {"maps": _maps, "codebook": _codebook, "keep": _keep, "summary": _summary}
COMMANDS = {
    "measure": measure,
    "cluster": cluster,
    "build": build,
    "inspect": inspect,
    "import-legacy": legacy,
    "calibrate": calibrate,
    "translate": translated,
    "plot": plot,
}


# ---------------------------------------------------------------------------------------------------------------
# From arguments


def subject(args: Any) -> models.Subject:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    return models.load(args.model_path, args.device, args.dtype, args.attention)


def pictures(args: Any) -> list[Picture]:
    """The pictures of one of the three sources."""
    given = [name for name in ("images", "coco", "scenes") if getattr(args, name) is not None]
    if len(given) != 1:
        raise ValueError("which pictures? give one of --images, --coco and --scenes")
    if args.coco and not args.coco_root:
        raise ValueError("--coco needs --coco-root, the folder that holds train2014 and val2014")
    if args.images:
        found = from_files(args.images)
    elif args.coco:
        found = from_coco(args.coco, args.coco_root, args.coco_split)
    else:
        found = from_scenes(args.scenes, args.first_scene)
    if args.first is not None and args.first < 1:
        raise ValueError(f"--first {args.first}: must be at least 1")
    return found[: args.first]


def experiment(args: Any) -> measuring.Settings:
    default = measuring.QUESTIONS if args.model_path else measuring.SCENES_QUESTIONS
    return measuring.Settings(
        questions=tuple(args.question or default),
        template=args.template,
        conv_mode=args.conv_mode,
        answer=args.answer,
        sampling=args.sampling,
        count=args.count,
        ranks=None if args.ranks is None else tuple(parse_ranks(args.ranks)),
        seed=args.seed or 0,
        ablation=args.ablation,
        pad_id=args.pad_id,
        newline=not args.no_newline,
        crop=args.crop,
        repeat=args.repeat,
        head_topk=args.head_topk,
        divergence_topk=args.divergence_topk,
        tokens_per_pass=args.tokens_per_pass,
    )


def recipe(args: Any) -> building.Recipe:
    given = {name: getattr(args, name) for name in _RECIPE}
    if given["min_pictures"] is not None and given["min_pictures"] >= 1:
        given["min_pictures"] = int(given["min_pictures"])
    return building.with_options(args.preset, **given)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{text!r}: write numbers with commas between, such as 0.3,0.45,0.6") from None
