"""The published code's settings, fields added to a checkpoint's config.json, as a ``MoB_config``: the only place that
knows their names."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_MODE, _FLAG, _PATH, _VALUE = (
    "mm_vision_select_feature",
    "toxic_codebook_flag",
    "toxic_codebook_path",
    "toxic_codebook_thres",
)
# Mode -> options of the rule; what ``toxic_codebook_thres`` means depends on the mode too.
_THRESHOLD = {"policy": "threshold"}
_RATIO = {"policy": "ratio"}
PRUNING = {
    "high_info_patch": _THRESHOLD,
    "high_info_patch_flatten": _THRESHOLD,
    "video_high_info_patch": _THRESHOLD,
    "high_info_patch_fix_num": _RATIO,
    "high_info_patch_double_smx": _RATIO | {"variant": "double_softmax"},
    "high_info_patch_single_smx": _RATIO | {"variant": "single_softmax"},
    "video_high_info_patch_double_smx": _RATIO | {"variant": "double_softmax"},
}
OFF = ("patch", "cls_patch")
BASELINES = ("random_patch", "video_random_patch", "low_sim_patch", "high_sim_patch")
EXPERIMENTS = (
    "fix_sim_patch",
    "fix_sim_context_tgt_patch",
    "fix_sim_context_pad_patch",
    "fix_sim_ablate_context_tgt_patch",
    "fix_id_patch",
    "fix_id_context_tgt_patch",
    "fix_id_context_pad_patch",
    "fix_id_ablate_context_tgt_patch",
)
_DIFFERS = {
    "high_info_patch_flatten": "tiles keep their order, and newlines follow keep_newlines; the published mode drops "
    "all newlines but one",
    "high_info_patch_double_smx": "the softmax over tokens runs over all tokens of a picture, the published one over "
    "one view",
    "video_high_info_patch_double_smx": "the softmax over tokens runs over all tokens of a video, the published one "
    "over one frame",
}


def translate(
    config: Mapping[str, Any], codebook: str | Path | None = None, trust_path: bool = False
) -> dict[str, Any]:
    """The ``MoB_config`` that means what a config.json of the published code says; {} where it prunes nothing.

    A path in a config.json was chosen by whoever wrote that file. It is used only with ``trust_path=True``; otherwise
    say yourself which codebook to use.

    Args:
        config: the whole config.json, as a dict.
        codebook: a codebook.safetensors, instead of the path in the config.
        trust_path: use the config's own path.

    Raises:
        ValueError: modes that are experiments or baselines, contradictions, values out of range, or no codebook.
    """
    mode = config.get(_MODE, "patch")
    _refuse(mode)
    if config.get("pad_token_emb_flag"):
        raise ValueError(
            "pad_token_emb_flag belongs to the leave-one-out experiment: python -m redundancy_codebook measure "
            "--ablation pad does it, and pruning needs no padding word"
        )
    if mode in OFF:
        return {}
    if config.get("mm_newline_position", "one_token") != "one_token":
        raise ValueError(f"mm_newline_position={config['mm_newline_position']!r}: published pruning needs 'one_token'")
    if not config.get(_FLAG, False):
        raise ValueError(f"{_MODE}={mode!r} with {_FLAG} off, which the published code cannot run: set it to true")
    value = config.get(_VALUE, 1.0)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"{_VALUE}={value!r}: give a number between 0 and 1")
    options = dict(PRUNING[mode])
    if options["policy"] == "ratio" and value == 1:
        return {}
    if options["policy"] == "ratio" and value == 0:
        raise ValueError(f"{_VALUE}=0 with {_MODE}={mode!r} would keep nothing: give a share above 0")
    options["path"] = _codebook(config.get(_PATH), codebook, trust_path)
    if mode in _DIFFERS:
        warnings.warn(f"{_MODE}={mode!r}: {_DIFFERS[mode]}", stacklevel=2)
    if options["policy"] == "threshold":
        return {"method": "codebook", "options": options | {"theta": float(value)}}
    return {"method": "codebook", "K": float(value), "options": options}


def _refuse(mode: Any) -> None:
    if mode in PRUNING or mode in OFF:
        return
    if mode in EXPERIMENTS or str(mode).startswith(("fix_sim_", "fix_id_")):
        raise ValueError(
            f"{_MODE}={mode!r} is a step of the experiment, not a way of pruning: python -m redundancy_codebook "
            "measure makes all its steps"
        )
    if mode in BASELINES:
        raise ValueError(
            f"{_MODE}={mode!r} is a baseline without a codebook: use a rule of mob, such as method='random'"
        )
    close = difflib.get_close_matches(str(mode), [*PRUNING, *OFF], n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"use one of {', '.join([*OFF, *PRUNING])}"
    raise ValueError(f"{_MODE}={mode!r}: {hint}")


def _codebook(named: Any, chosen: str | Path | None, trusted: bool) -> str:
    """The path to use."""
    if chosen is None and not named:
        raise ValueError(f"the config names no {_PATH}: give codebook=, the path of a codebook.safetensors")
    if chosen is None and not trusted:
        raise ValueError(
            f"the config names the codebook {str(named)!r}, and a path in a config.json is not used unasked: give "
            "codebook=, or trust_path=True where you know the file"
        )
    path = str(chosen if chosen is not None else named)
    if not path.endswith(".safetensors"):
        raise ValueError(
            f"{path} is not a .safetensors file: python -m redundancy_codebook import-legacy {path} "
            "codebook.safetensors turns a published one into it"
        )
    return path
