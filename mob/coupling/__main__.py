"""``python -m mob.coupling calibrate LOGS... --save FOLDER``: what lies between strong and weak, from your own logs.

Reads eta of every sample that was pruned: logs of lmms-eval or llava.eval with --log-retained-patches, or what
run_llava --save-record wrote. Any rule and K will do, but the layer, and the rules before the decoder with their
numbers, must be those that are to be used. Finds two modes (mob/coupling/modes.py says how) and prints tau and spread;
where there are not two, says why, and saves nothing unless told to. --save takes a model's folder, whose config.json
gets the regime, or a .json file for --mob-config. Exit code 1: there are not two modes; 2: something that is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import uuid
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mob.audit.reading import read
from mob.config import MoBConfig, overlay
from mob.coupling.modes import Modes, split
from mob.methods import METHODS
from mob.methods.mob import AUTO
from mob.record import RetainedPatches

_BARS, _PLAIN, _BINS = " ▁▂▃▄▅▆▇█", " .:-=+*#@", 48


def etas(records: Sequence[RetainedPatches]) -> tuple[list[float], Counter[str], int | None, tuple[str, ...]]:
    """Eta of every picture that was pruned, how many samples were left out for which reason, the layer, and the rules
    before the decoder.

    A sample's own eta is that of all its pictures together, which is not what a rule sees of each: of several pictures
    only those of a run with regime "auto" are used, which logs them one by one.

    Raises:
        ValueError: records of several layers, or behind different rules before the decoder, or different numbers of
            tokens left by them, or of rules that had pruned in the decoder before.
    """
    values, left, where, shares = [], Counter(), set(), {}
    for one in records:
        each = one.adaptive.get("eta") or ([one.eta] if len(one.grids) < 2 else [])
        if not each:
            left["with several pictures, not of a run with regime auto"] += 1
        elif one.eta is None:
            left["where nothing was dropped, or there was no prompt"] += 1
        else:
            values += [value for value in each if value is not None]
            where.add((one.layer, *(str(stage.get("method")) for stage in one.stages)))
            for stage in one.stages:
                if stage.get("layer", 0):
                    raise ValueError(
                        f"records of {one.method!r}, which had pruned at layer {stage['layer']} before: eta of what "
                        "was left is not that of a picture; give logs of a rule with one stage"
                    )
                shares.setdefault(str(stage.get("method")), []).append((stage["K"], stage["N"]))
    if len(where) > 1:
        names = sorted(f"layer {layer}" + "".join(f" after {name}" for name in rules) for layer, *rules in where)
        raise ValueError(f"records of {' and '.join(names)}: eta differs between them, give logs of one")
    for name, kept in shares.items():
        if not getattr(METHODS.get(name), "adaptive", False) and not _alike(kept):
            raise ValueError(f"records behind {name!r} with different K: eta differs between them, give logs of one")
    layer, *before = next(iter(where)) if where else (None,)
    return values, left, layer, tuple(before)


def _alike(kept: Sequence[tuple[int, int]]) -> bool:
    """Whether (K, N) of several samples are of one number, or of one share, rounded."""
    lowest, highest = max((K - 0.5) / N for K, N in kept), min((K + 0.5) / N for K, N in kept)
    return len({K for K, _ in kept}) == 1 or lowest <= highest


def histogram(values: Sequence[float], tau: float, bars: str = _BARS) -> list[str]:
    """How the values lie, in a line, with tau marked below."""
    counts, edges = np.histogram(values, _BINS)
    top = max(int(counts.max()), 1)
    line = "".join(bars[-(-int(count) * (len(bars) - 1) // top)] for count in counts)
    at = min(int((tau - edges[0]) / ((edges[-1] - edges[0]) or 1) * _BINS), _BINS - 1)
    return [f"{edges[0]:.4f} {line} {edges[-1]:.4f}", " " * (len(f"{edges[0]:.4f} ") + at) + "^ tau"]


def report(values: Sequence[float], modes: Modes, bars: str) -> list[str]:
    upper = round(modes.share * modes.count)
    return [
        *histogram(values, modes.tau, bars),
        f"{modes.count} etas: {modes.count - upper} up to tau (mean {modes.low:.4f}), {upper} above ({modes.high:.4f})",
        f"separation {modes.separation:.2f} (means apart, in standard deviations of the parts), "
        f"valley {modes.valley:.2f} (density between, of the lower peak)",
        f"tau {modes.tau:.4f}, spread {modes.spread:.4f}",
    ]


def save(target: Path, found: dict[str, Any], before: Sequence[str] = ()) -> Path:
    """Write regime, tau, spread and layer into the MoB_config of a model's folder, or into a .json that holds one.

    All else stays, but for what sets K_p or k in another way. Returns the file.

    Args:
        before: rules before the decoder that the logs were taken behind.

    Raises:
        ValueError: no such folder, or a file that is not JSON, or whose MoB_config is wrong, prunes at another layer,
            behind other rules, or by a rule that has no regime.
    """
    inside = target.is_dir()
    file = target / "config.json" if inside else target
    if not inside and target.suffix != ".json":
        raise ValueError(f"--save {target}: no such folder; give a model's folder, or a file that ends in .json")
    try:
        whole = json.loads(file.read_text()) if inside or file.exists() else {}
        if not isinstance(whole, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError) as error:
        raise ValueError(f"--save {target}: cannot read {file} ({error}); give a model's folder") from None
    old = (whole.get("MoB_config") if inside else whole) or {}
    if (other := MoBConfig.from_dict(old).l_idx) not in (None, found["l_idx"]):
        raise ValueError(
            f"--save {target}: it prunes at layer {other}, these logs are of layer {found['l_idx']}, where eta is "
            "another: give logs of the layer that is to be used"
        )
    new = overlay(old, found)
    early, _ = MoBConfig.from_dict(new).rules()
    if (there := [one.name for one in early]) != list(before):
        raise ValueError(
            f"--save {target}: it prunes by {'+'.join(there) or 'nothing'} before the decoder, these logs were taken "
            f"behind {'+'.join(before) or 'nothing'}, where eta is another: set method there first, or give other logs"
        )
    text = json.dumps({**whole, "MoB_config": new} if inside else new, indent=2) + "\n"
    beside = file.with_name(f".{uuid.uuid4().hex}.part")
    try:
        try:
            beside.write_text(text)
            os.replace(beside, file)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(f"--save {target}: cannot write {file} ({error.strerror or error})") from None
    return file


def calibrate(args: argparse.Namespace) -> int:
    """Read, split, say, save. Raises ValueError."""
    reading = read(args.logs)
    values, left, layer, before = etas([record for sample in reading.samples for record in sample.records])
    for reason, count in left.items():
        print(f"{count} samples left out {reason}")
    if not values:
        raise ValueError("no eta in these logs: log a run in which tokens are dropped and questions asked")
    modes = split(values)
    encoding = sys.stdout.encoding or "ascii"
    plain = _BARS.encode(encoding, "replace").decode(encoding) != _BARS
    print("\n".join(report(values, modes, _PLAIN if plain else _BARS)))
    if modes.reason:
        print(f"These are not two modes: {modes.reason}. One regime for all is the better choice; tau is a guess.")
        if not args.force:
            print("Nothing is saved; --force does it all the same." if args.save else "--save would need --force.")
            return 1
    if args.save:
        found = {"regime": AUTO, "tau": round(modes.tau, 6), "spread": round(modes.spread, 6), "l_idx": layer}
        print(f"written to {save(args.save, found, before)}: {json.dumps(found)}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m mob.coupling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="calibrate")
    one = commands.add_parser("calibrate", help="find tau and spread", description=__doc__.splitlines()[0])
    one.add_argument("logs", nargs="+", type=Path, help="JSONL files, or folders of lmms-eval logs")
    one.add_argument("--save", type=Path, metavar="FOLDER|FILE.json", help="a model's folder, or a MoB_config to write")
    one.add_argument("--force", action="store_true", help="save although there are not two modes")
    args = parser.parse_args(argv)
    try:
        return calibrate(args)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
