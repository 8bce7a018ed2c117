"""What ``--model_args`` of our models may say, checked before anything is loaded."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping
from typing import Any

from mob.codebook_file import allow_codebooks_of
from mob.config import MoBConfig, overlay
from mob.flags import DEFAULT
from mob.methods import METHODS, create, parse

# Every model knows these; families add their own.
COMMON: dict[str, type] = {
    "pretrained": str,  # folder or hub name
    "dtype": str,
    "attn_implementation": str,
    "device_map": str,
    "mob": bool,  # False: do not prune
    "log_retained_patches": bool,
    "resume": str,  # folder in which answers are kept while they come
    "save_pictures": str,  # folder for the pictures that are shown, which the audit then finds
    "replay": str,  # log, whose kept indices are used again
}
_LAYER = "layer"  # a second name of l_idx


def read(given: Mapping[str, Any], family: Mapping[str, type]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split the arguments of a model into its own options and its ``MoB_config``.

    Fields of the chosen rule, such as seed, are recognised beside the keys of ``MoBConfig``; rules that are joined by
    "+" have theirs in ``options={"first": {"K": 0.5}}``.

    Raises:
        ValueError: an unknown name, a value of another kind, or settings that contradict each other; one line.
    """
    given = {name: _json(value) for name, value in given.items() if value is not None}
    kinds = COMMON | family
    method = str(given.get("method", "mob"))
    if "+" not in method:
        create(method)  # says what there is
    config = [_LAYER, *(field.name for field in dataclasses.fields(MoBConfig))]
    rule = [field.name for field in dataclasses.fields(METHODS[method])] if method in METHODS else []
    rule = [name for name in rule if name not in config]
    for name in given:
        if name not in (*kinds, *config, *rule):
            close = difflib.get_close_matches(name, [*kinds, *config, *rule], n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted({*kinds, *config, *rule}))}"
            raise ValueError(f"--model_args has no {name!r}: {hint}")
    own = {name: _typed(name, value, kinds[name]) for name, value in given.items() if name in kinds}
    mob = {name: value for name, value in given.items() if name in config}
    if options := {name: value for name, value in given.items() if name in rule}:
        mob["options"] = {**mob.get("options", {}), **options}
    for other, used in (("mob=False", own.get("mob") is False), ("replay", "replay" in own)):
        if mob and used:
            raise ValueError(f"--model_args has {other}, which decides alone, and {', '.join(mob)}: drop one")
    if _LAYER in mob:
        if "l_idx" in mob:
            raise ValueError("--model_args sets the layer twice, as layer and as l_idx: keep one of them")
        mob["l_idx"] = mob.pop(_LAYER)
    settings(mob, None, True)
    allow_codebooks_of(mob)
    return own, mob


def settings(mob: Mapping[str, Any], saved: Mapping[str, Any] | None, on: bool) -> dict[str, Any]:
    """The ``MoB_config`` to use: what was given over what the checkpoint says, a third of the tokens if neither says K.

    Raises:
        ValueError: they contradict each other.
    """
    if not on:
        return {}
    saved = MoBConfig.from_dict(saved).to_dict()
    if "method" in mob and mob["method"] != saved.get("method", "mob"):
        saved.pop("options", None)  # of another rule
    values = overlay(saved, mob)
    early, late = parse(values.get("method", "mob"), values.get("options"))
    if "K" not in values and not (late is None and getattr(early[-1].rule, "adaptive", False)):
        values |= DEFAULT
    MoBConfig.from_dict(values).rules()
    return values


def _json(value: Any) -> Any:
    """lmms-eval hands lists and dicts on as text."""
    if not isinstance(value, str) or value[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f'{value} in --model_args is not JSON ({error}): quote keys and words with "') from None


def _typed(name: str, value: Any, kind: type) -> Any:
    """lmms-eval reads 1 as an integer and true as a bool, whatever the option is."""
    if kind is str and not isinstance(value, (dict, list)):
        return str(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        wanted = {bool: "True or False", int: "an integer", float: "a number", str: "text"}[kind]
        raise ValueError(f"{name}={value!r} in --model_args: give {wanted}")
    return value
