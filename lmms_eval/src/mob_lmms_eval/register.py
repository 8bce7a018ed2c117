"""What lmms-eval finds through its entry-point group ``lmms_eval.models``.

Loaded at every start of lmms-eval, also for other people's models: nothing heavy is imported here.
"""

from __future__ import annotations

import sys
from typing import Any

from mob_lmms_eval import command

_HOME = "mob_lmms_eval.models"
MODELS = {
    "llava-v1.5-mob": f"{_HOME}.llava.Llava15",
    "llava-v1.6-mob": f"{_HOME}.llava.Llava16",
    "llava-onevision-mob": f"{_HOME}.llava_next.LlavaOnevision",
    "video-llava-mob": f"{_HOME}.llava_next.VideoLlava",
    "qwen2-vl-mob": f"{_HOME}.qwen.Qwen2VL",
    "qwen2.5-vl-mob": f"{_HOME}.qwen.Qwen25VL",
}


def manifests() -> list[Any]:
    """One manifest for each model; and, if the stock command is starting, its command line made ready."""
    from lmms_eval.models.registry_v2 import ModelManifest

    listed = getattr(sys.modules.get("lmms_eval.models"), "AVAILABLE_SIMPLE_MODELS", {})
    for name, path in MODELS.items():
        listed.setdefault(name, path)  # `lmms-eval models` prints this dict and asks no plugin
    if "lmms_eval.cli.dispatch" in sys.modules:
        command.prepare(sys.argv, MODELS)
    return [ModelManifest(model_id=name, simple_class_path=path) for name, path in MODELS.items()]
