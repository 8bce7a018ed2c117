"""The ``--mob-*`` flags that every command shares, and what they mean together with config.json."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from mob.codebook_file import allow_codebooks_of
from mob.config import MoBConfig, overlay
from mob.methods import parse

# What "on" means when nothing else says how much to keep: a third of the visual tokens.
DEFAULT = {"K": 1 / 3}
_KEYS = {
    "mob_K": "K",
    "mob_Kp_ratio": "Kp_ratio",
    "mob_k_ratio": "k_ratio",
    "mob_layer": "l_idx",
    "mob_method": "method",
    "mob_schedule": "schedule",
    "mob_per_picture": "per_picture",
    "mob_keep_newlines": "keep_newlines",
    "mob_regime": "regime",
    "mob_tau": "tau",
    "mob_spread": "spread",
    "mob_epsilon": "epsilon",
    "mob_online": "online",
    "mob_options": "options",
}


def add_mob_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("pruning (MoB)")
    group.add_argument("--mob-K", type=count_or_share, help="visual tokens to keep: a number, or a share such as 0.25")
    group.add_argument("--mob-Kp-ratio", type=float, help="share of them that are prompt centres")
    group.add_argument("--mob-k-ratio", type=float, help="covering fold, as a share of the prompt centres")
    group.add_argument("--mob-layer", type=int, help="decoder layer at whose entry the others leave (2)")
    group.add_argument("--mob-method", help="rule (mob); python -m mob.methods lists them")
    group.add_argument("--mob-schedule", help="paper's schedule for what is not given: default, strong, weak")
    switch = argparse.BooleanOptionalAction
    group.add_argument("--mob-per-picture", action=switch, help="split the budget over the pictures of a prompt (yes)")
    group.add_argument("--mob-keep-newlines", action=switch, help="newline tokens of tiled pictures always stay (no)")
    group.add_argument(
        "--mob-regime", help="K_p and k: strong, weak, or auto, from each sample's eta (docs/adaptive.md)"
    )
    group.add_argument(
        "--mob-tau", type=float, help="eta between strong and weak, from python -m mob.coupling calibrate"
    )
    group.add_argument("--mob-spread", type=float, help="over how much of eta auto changes between them (0: at once)")
    group.add_argument("--mob-online", action=switch, help="tau follows the last samples (no)")
    group.add_argument(
        "--mob-epsilon", type=float, help="keep fewer than K where these cover the picture to this radius"
    )
    group.add_argument("--mob-options", metavar="JSON", help="options of the rule, such as '{\"layers\": [3, 7, 16]}'")
    group.add_argument("--mob-config", type=Path, help="JSON file with a MoB_config; other flags win over it")
    group.add_argument("--mob-off", action="store_true", help="do not prune, whatever the checkpoint says")


def count_or_share(text: str) -> int | float:
    """ "64" -> 64, "0.25" -> 0.25."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def resolve(args: Any, saved: dict[str, Any] | None, default_on: bool) -> dict[str, Any]:
    """The ``MoB_config`` to use: {} for off.

    Off, if asked for; else config.json (``saved``), overlaid with --mob-config, overlaid with the flags; if none of
    these says anything, the default where ``default_on``.

    Raises:
        ValueError: a wrong key or value, or an unreadable --mob-config.
    """
    if getattr(args, "mob_off", False):
        return {}
    values = dict(saved or {})
    file = getattr(args, "mob_config", None)
    if file is not None:
        given = _read(file)
        allow_codebooks_of(given)  # whoever names the file knows what is in it
        values = overlay(values, given)
    flags = {key: getattr(args, name, None) for name, key in _KEYS.items()}
    flags = {key: value for key, value in flags.items() if value is not None}
    if "options" in flags:
        flags["options"] = _object(flags["options"], "--mob-options", '{"layers": [3, 7, 16]}')
    allow_codebooks_of({"method": values.get("method"), **flags})
    values = overlay(values, flags)
    if (flags or default_on) and "K" not in values and not _decides_itself(values):
        values |= DEFAULT
    MoBConfig.from_dict(values)
    return values


def _read(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f'--mob-config {file}: {error}; give a JSON file such as {{"K": 64}}') from None
    return _object(text, f"--mob-config {file}", '{"K": 64}')


def _object(text: str, source: str, example: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{source}: {error}; give JSON such as {example}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{source}: must hold one object such as {example}")
    return values


def _decides_itself(values: dict[str, Any]) -> bool:
    """Whether one of the rules chooses how many tokens stay."""
    early, late = parse(values.get("method", "mob"), values.get("options"))
    return any(getattr(one.rule, "adaptive", False) for one in (*early, *([late] if late else [])))
