"""``python -m mob.audit samples.jsonl --images DIR --html report.html``: what was kept of every sample, on one page.

Reads lmms-eval's sample logs (--log_samples with --log-retained-patches), answers of llava.eval with their
--log-retained-patches file (give both), and the JSON of llava.eval.run_llava --save-record. The page opens without a
network. Exit code 2 and one line: a file or an option that is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

from mob.audit import Album, read, write_page
from mob.audit.page import SEEN

_SMALLEST, _LARGEST = 64, 4096


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m mob.audit",
        description=__doc__,
        epilog="The keys that are read: python -c 'import mob.audit; help(mob.audit)'",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("samples", nargs="+", type=Path, help="JSONL files; all go into one report")
    parser.add_argument("--html", type=Path, required=True, help="file to write")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--images", type=Path, help="folder of the pictures (or the one picture of all samples)")
    given.add_argument("--no-pictures", action="store_true", help="draw grids only")
    parser.add_argument(
        "--max-picture",
        type=_side,
        metavar="PIXELS",
        help="longest side of a picture in the report (default: 512 up to 500 pictures, 320 up to 2000, else 224)",
    )
    parser.add_argument(
        "--seen",
        choices=SEEN,
        default="whole",
        help="what the model saw of a picture in one square view, where the log does not say: all of it squeezed, "
        "padded to a square (liuhaotian/llava-v1.5), or its centre (llava-hf/llava-1.5); the page can switch (whole)",
    )
    parser.add_argument("--layers", type=int, help="decoder layers of the model, for the mean tokens a layer")
    parser.add_argument("--title", help="default: the names of the files")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser.parse_args(argv)


def _side(text: str) -> int:
    """A side in pixels, for argparse."""
    value = int(text)
    if not _SMALLEST <= value <= _LARGEST:
        raise argparse.ArgumentTypeError(f"{value}: must be {_SMALLEST} to {_LARGEST}")
    return value


def run(args: argparse.Namespace) -> None:
    """Read, write, and say what came of it. Raises ValueError."""
    reading = read(args.samples, args.layers)
    album = Album(None if args.no_pictures else args.images, args.max_picture)
    title = args.title or "Audit of " + ", ".join(reading.files)
    progress = partial(tqdm, leave=False, disable=args.quiet, file=sys.stderr)
    size = write_page(reading, album, args.html, title=title, seen=args.seen, progress=progress)
    for reason, count in album.trouble.items() if album.root else ():
        print(f"{_count(count, 'sample')} with a picture {reason}", file=sys.stderr)
    if reading.without_entry:
        print(f"{_count(reading.without_entry, 'line')} without retained patches left out", file=sys.stderr)
    print(f"{args.html}: {_count(len(reading.samples), 'sample')}, {_megabytes(size)}")


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.0f} kB"


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    try:
        run(args)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
