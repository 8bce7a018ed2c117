"""Which parts of a model a run trains, and how: whole, or by low-rank updates."""

from __future__ import annotations

from typing import Any

from torch import nn

from llava.model.formats import TOWER
from llava.train.arguments import PARTS, ModelArguments, TrainingArguments

PROJECTOR_KEYS = ("model.multi_modal_projector.", "model.image_newline")
_KEYS = {
    "mm_mlp_adapter": PROJECTOR_KEYS,
    "mm_vision_tower": (TOWER,),
    "mm_language_model": ("model.language_model.", "lm_head."),
}
FULL, ADAPTER, LORA_MODE = "full", "projector", "lora"


def choose_trainable(model: Any, model_args: ModelArguments, args: TrainingArguments) -> str:
    """Freeze everything but what the flags name, add LoRA, set precisions; says how the result is to be saved.

    Raises:
        ValueError: nothing would be trained, or flags contradict each other.
    """
    parts = _parts(model_args, args)
    prefixes = tuple(prefix for part in parts for prefix in _KEYS[part])
    unused = _unused(model) if "mm_vision_tower" in parts else ()
    if args.bits < 16:
        _peft().prepare_model_for_kbit_training(model, use_gradient_checkpointing=args.gradient_checkpointing)
    for name, parameter in model.named_parameters():
        wanted = name.startswith(prefixes) if prefixes else False
        parameter.requires_grad_(wanted and not name.startswith(unused) and parameter.is_floating_point())
    if args.lora_enable:
        _add_lora(model, args)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError("these flags freeze every part: nothing would be trained")
    if not args.deepspeed:  # which has its own float32 copies
        for parameter in trained:
            parameter.data = parameter.data.float()
        if any(parameter.requires_grad for parameter in model.model.vision_tower.parameters()):
            model.model.vision_tower.float()  # also what stays as it is: norms on CPUs take no second precision
    mode = LORA_MODE if args.lora_enable else ADAPTER if set(parts) == {"mm_mlp_adapter"} else FULL
    if mode != FULL and model_args.mm_use_im_start_end:
        raise ValueError("--mm_use_im_start_end adds tokens that only a run of the whole model trains: leave it out")
    return mode


def _parts(model_args: ModelArguments, args: TrainingArguments) -> list[str]:
    """The parts that these flags train whole; ValueError where one flag takes back what another says."""
    parts = _named(model_args, args)
    denied = {
        "freeze_backbone": "mm_language_model" in parts,
        "freeze_mm_mlp_adapter": "mm_mlp_adapter" in parts,
        "tune_mm_mlp_adapter": set(parts) != {"mm_mlp_adapter"},
        "unfreeze_mm_vision_tower": "mm_vision_tower" not in parts,
    }
    if wrong := [name for name, other in denied.items() if other and getattr(model_args, name)]:
        raise ValueError(f"--{wrong[0]}: other flags train {', '.join(parts)}; leave it out, or them")
    rates = {"mm_projector_lr": "mm_mlp_adapter", "mm_vision_tower_lr": "mm_vision_tower"}
    if idle := [name for name, part in rates.items() if getattr(args, name) is not None and part not in parts]:
        raise ValueError(f"--{idle[0]}: {rates[idle[0]]} is not trained; leave it out, or train that too")
    return parts


def _named(model_args: ModelArguments, args: TrainingArguments) -> list[str]:
    if model_args.mm_tunable_parts:
        parts = [part.strip() for part in model_args.mm_tunable_parts.split(",") if part.strip()]
        if wrong := [part for part in parts if part not in PARTS]:
            raise ValueError(f"--mm_tunable_parts {wrong[0]}: use {', '.join(PARTS)}")
        if args.lora_enable and "mm_language_model" in parts:
            raise ValueError("--lora_enable trains low-rank updates: leave mm_language_model out of --mm_tunable_parts")
        return parts
    if model_args.tune_mm_mlp_adapter:
        if args.lora_enable:
            raise ValueError("--tune_mm_mlp_adapter trains the projector alone: leave out --lora_enable")
        return ["mm_mlp_adapter"]
    parts = [] if model_args.freeze_mm_mlp_adapter else ["mm_mlp_adapter"]
    parts += ["mm_vision_tower"] if model_args.unfreeze_mm_vision_tower else []
    return parts + ([] if model_args.freeze_backbone or args.lora_enable else ["mm_language_model"])


def _unused(model: Any) -> tuple[str, ...]:
    """Parts of the tower behind the hidden state that is used: they get no gradient, and engines would wait for it."""
    layer, count = model.config.vision_feature_layer, len(model.model.vision_tower.encoder.layers)
    if not isinstance(layer, int):
        return ()
    last = layer if layer >= 0 else count + 1 + layer  # hidden state n is what layer n - 1 gives
    behind = tuple(f"{TOWER}encoder.layers.{number}." for number in range(last, count))
    return (*behind, f"{TOWER}post_layernorm.")


def trains_words(model: Any) -> bool:
    """Whether anything is trained that a text without a picture passes through."""
    seeing = (TOWER, *PROJECTOR_KEYS)
    return any(p.requires_grad for name, p in model.named_parameters() if not name.startswith(seeing))


def find_all_linear_names(model: Any) -> list[str]:
    """Names of the linear layers of the language model, without their numbers: what LoRA is put on."""
    language = model.model.language_model
    return sorted({name.rsplit(".", 1)[-1] for name, part in language.named_modules() if isinstance(part, nn.Linear)})


def _add_lora(model: Any, args: TrainingArguments) -> None:
    """Low-rank updates inside the language model; the model's class, hooks and other names stay as they are."""
    config = lora_config(args, find_all_linear_names(model))
    _peft().inject_adapter_in_model(config, model.model.language_model)
    model._hf_peft_config_loaded = args.bits < 16  # Trainer refuses a quantised model that says it has no adapter


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ValueError("--lora_enable needs PEFT: pip install peft") from error
    return peft


def lora_config(args: TrainingArguments, targets: list[str]) -> Any:
    """PEFT's description of the updates."""
    return _peft().LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=targets,
        bias=args.lora_bias,
        task_type="CAUSAL_LM",
    )
