"""The flags of training: those of the original scripts, those of transformers, and the ``--mob_*`` ones.

Flags that transformers 5 renamed or dropped are accepted; ``translate`` says what becomes of them.
"""

from __future__ import annotations

import difflib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import HfArgumentParser
from transformers.integrations import get_available_reporting_integrations, is_tensorboard_available

from mob.config import MoBConfig
from mob.flags import count_or_share, resolve

PARTS = ("mm_mlp_adapter", "mm_vision_tower", "mm_language_model")
SKIP, STOP = "skip", "stop"
HF, ORIGINAL = "hf", "original"
EVERY = 2**31 - 1  # visual tokens: more than any sample has
BY_LENGTH = "group_by_length"  # of --train_sampling_strategy


def _help(text: str, default: Any = None) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class ModelArguments:
    """What is trained, and from what."""

    model_name_or_path: str | None = _help("a language model (with --vision_tower), or any LLaVA folder or hub name")
    model_base: str | None = _help("the model under a LoRA or projector-only folder")
    version: str = _help("conversation template: plain, v1, llama_2, ..., or llava_hf, v1 without a system text", "v0")
    freeze_backbone: bool = _help("the language model is not trained", False)
    tune_mm_mlp_adapter: bool = _help("only the projector is trained (first stage)", False)
    freeze_mm_mlp_adapter: bool = _help("the projector is not trained", False)
    unfreeze_mm_vision_tower: bool = _help("the vision tower is trained too", False)
    mm_tunable_parts: str | None = _help(f"exactly these parts are trained, comma-separated: {', '.join(PARTS)}")
    vision_tower: str | None = _help("CLIP folder or hub name, such as openai/clip-vit-large-patch14-336")
    mm_vision_select_layer: int | None = _help("hidden state of the tower that is used (-2)")
    mm_vision_select_feature: str | None = _help("patch, or cls_patch to keep the CLS token")
    pretrain_mm_mlp_adapter: str | None = _help("mm_projector.bin of the first stage")
    mm_projector_type: str | None = _help("mlp2x_gelu, the only one there is")
    mm_use_im_start_end: bool = _help("pictures stand between <im_start> and <im_end>", False)
    mm_use_im_patch_token: bool = _help("an unused token <im_patch>, as old checkpoints have", True)
    mm_patch_merge_type: str | None = _help("flat, or spatial_unpad for anyres")


@dataclass
class DataArguments:
    """What it is trained on."""

    data_path: str | None = _help("LLaVA data: a JSON list or JSON lines of {id, image, conversations}")
    image_folder: str | None = _help("pictures named in the data lie here (default: beside the data)")
    image_aspect_ratio: str | None = _help("square, pad or anyres (default: what the checkpoint has, else square)")
    image_grid_pinpoints: str | None = _help("(width, height) list for anyres, or '(1x1),...,(2x2)' in tiles")
    lazy_preprocess: bool = _help("accepted; samples are always prepared when they are needed", True)
    is_multimodal: bool = _help("accepted; every run may hold pictures", True)
    on_bad_sample: str = _help("stop or skip where a record or picture cannot be used; either way it is named", STOP)


@dataclass
class MobArguments:
    """Training under pruning: the forward pass drops visual tokens as it will in use."""

    mob_K: str | None = _help("visual tokens to keep, a number or a share such as 0.25")
    mob_random_K: list[str] | None = _help(
        "one of these is drawn for each step, by --seed and the step's number; 1.0: all"
    )
    mob_Kp_ratio: float | None = _help("share of them that are prompt centres")
    mob_k_ratio: float | None = _help("covering fold, as a share of the prompt centres")
    mob_layer: int | None = _help("decoder layer at whose entry the others leave")
    mob_method: str | None = _help("rule (mob); python -m mob.methods lists them")
    mob_schedule: str | None = _help("paper's schedule for what is not given: default, strong, weak")
    mob_per_picture: bool | None = _help("split the budget over the pictures of a sample")
    mob_keep_newlines: bool | None = _help("newline tokens of tiled pictures always stay")
    mob_regime: str | None = _help("K_p and k: strong, weak, or auto, from each sample's eta (docs/adaptive.md)")
    mob_tau: float | None = _help("eta between strong and weak, from python -m mob.coupling calibrate")
    mob_spread: float | None = _help("over how much of eta auto changes between them (0: at once)")
    mob_online: bool | None = _help("tau follows the last samples")
    mob_epsilon: float | None = _help("keep fewer than K where these cover the picture to this radius")
    mob_options: str | None = _help("options of the rule, a JSON object")
    mob_config: str | None = _help("JSON file with a MoB_config; other flags win over it")
    mob_off: bool = _help("do not prune, whatever the checkpoint says", False)

    def __post_init__(self) -> None:
        if self.mob_K is not None:
            self.mob_K = _number("mob_K", str(self.mob_K))
        self.mob_config = Path(self.mob_config) if self.mob_config else None
        self.mob_random_K = [_drawn(str(K)) for K in self.mob_random_K] if self.mob_random_K else None

    def settings(self, saved: dict[str, Any] | None) -> dict[str, Any]:
        """The ``MoB_config`` to train with, {} for none; of several K the largest, which is also what is saved.

        Where the largest is every token, K is left out: off, and with the next K in use the other keys hold again.

        Raises:
            ValueError: a wrong key or value.
        """
        asked = [name for name, value in vars(self).items() if name != "mob_off" and value is not None]
        if self.mob_off and asked:
            raise ValueError(f"--mob_off and --{asked[0]} contradict each other: give one of them")
        if self.mob_random_K and self.mob_K is None:
            shares = {type(K) for K in self.mob_random_K if K != EVERY}
            if len(shares) > 1:
                raise ValueError("--mob_random_K mixes numbers and shares: give --mob_K, which is what will be saved")
            self.mob_K = max(self.mob_random_K)
        values = resolve(self, saved, default_on=False)
        for K in self.mob_random_K or ():
            MoBConfig.from_dict(values | {"K": K})
        MoBConfig.from_dict(values).rules()
        return {key: value for key, value in values.items() if (key, value) != ("K", EVERY)}


def _number(name: str, text: str) -> int | float:
    try:
        return count_or_share(text)
    except ValueError:
        raise ValueError(f"--{name} {text}: give a number such as 64, or a share such as 0.25") from None


def _drawn(text: str) -> int | float:
    """One of several K. Among shares 1.0 is one too, though alone it would ask for pruning that prunes nothing."""
    K = _number("mob_random_K", text)
    return EVERY if isinstance(K, float) and K == 1 else K


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """transformers' own, and the original's."""

    cache_dir: str | None = _help("accepted; set HF_HOME to move the cache")
    output_dir: str | None = _help("checkpoints and the finished model")
    remove_unused_columns: bool = _help("leave this off", False)
    mpt_attn_impl: str | None = _help("accepted; there is no MPT")
    model_max_length: int = _help("tokens of a sample, pictures included; longer ones are cut", 2048)
    double_quant: bool = _help("4 bits: quantise the constants too", True)
    quant_type: str = _help("4 bits: nf4 or fp4", "nf4")
    bits: int = _help("16, or 8 or 4 for LoRA on a quantised model (bitsandbytes)", 16)
    lora_enable: bool = _help("train low-rank updates of the language model, and the projector", False)
    lora_r: int = _help("rank", 64)
    lora_alpha: int = _help("scale, divided by the rank", 16)
    lora_dropout: float = _help("dropout before the update", 0.05)
    lora_weight_path: str = _help("not supported: start from the adapter with --model_base", "")
    lora_bias: str = _help("none", "none")
    mm_projector_lr: float | None = _help("learning rate of the projector")
    mm_vision_tower_lr: float | None = _help("learning rate of the vision tower")
    group_by_modality_length: bool = _help("batches of equal modality and similar length", False)
    attn_implementation: str | None = _help("sdpa, eager or flash_attention_2")
    save_format: str = _help("hf: a folder of transformers; original: the layout of liuhaotian/*", HF)

    def __post_init__(self) -> None:
        if self.gradient_checkpointing and self.gradient_checkpointing_kwargs is None:
            # The re-entrant kind loses the gradients of whatever lies behind frozen embeddings.
            self.gradient_checkpointing_kwargs = {"use_reentrant": False}
        try:
            super().__post_init__()
        except ImportError as error:
            if not self.deepspeed:
                raise
            raise ValueError(
                "--deepspeed needs DeepSpeed: pip install --upgrade deepspeed, or leave the flag out"
            ) from error
        if self.fp16 and self.device.type == "cpu":
            raise ValueError("--fp16 is for GPUs: use --bf16 True on a CPU, or neither")
        if self.gradient_accumulation_steps < 1:
            raise ValueError(f"--gradient_accumulation_steps {self.gradient_accumulation_steps}: give 1 or more")
        _choice("save_format", self.save_format, (HF, ORIGINAL))
        _choice("bits", self.bits, (4, 8, 16))
        if self.bits < 16 and not self.lora_enable:
            raise ValueError(f"--bits {self.bits}: quantised weights cannot be trained, add --lora_enable True")
        if self.bits < 16 and self.save_format != ORIGINAL:
            raise ValueError(
                f"--bits {self.bits} cannot merge its result into quantised weights: add --save_format original, and "
                "merge with scripts/merge_lora_weights.py"
            )
        if self.lora_weight_path:
            raise ValueError("--lora_weight_path: start from the adapter, --model_name_or_path X --model_base Y")
        if self.lora_bias != "none":
            raise ValueError(f"--lora_bias {self.lora_bias}: the language models have no biases, use none")


def _choice(name: str, value: Any, choices: tuple) -> None:
    if value not in choices:
        raise ValueError(f"--{name} {value}: use one of {', '.join(map(str, choices))}")


# Old flag -> new flag, or None where it has no effect any more.
_RENAMED: dict[str, str | None] = {
    "evaluation_strategy": "eval_strategy",
    "warmup_ratio": "warmup_steps",  # below 1 it is a share of all steps
    "no_cuda": "use_cpu",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "push_to_hub_token": "hub_token",
    "push_to_hub_model_id": "hub_model_id",
    "torchdynamo": "torch_compile_backend",
    "save_safetensors": None,
    "logging_dir": None,
    "use_mps_device": None,
    "fp16_backend": None,
    "half_precision_backend": None,
    "dispatch_batches": None,
    "split_batches": None,
    "overwrite_output_dir": None,
    "mm_resampler_type": None,
    "push_to_hub_organization": None,
    "fsdp_transformer_layer_cls_to_wrap": None,
    "fsdp_min_num_params": None,
    "include_tokens_per_second": None,
    "include_inputs_for_metrics": None,
    "fp16_opt_level": None,
    "jit_mode_eval": None,
    "use_ipex": None,
    "tpu_num_cores": None,
    "tpu_metrics_debug": None,
    "mp_parameters": None,
    "past_index": None,
    "ray_scope": None,
    "use_legacy_prediction_loop": None,
}
_WHY = {
    "save_safetensors": "weights are always saved as safetensors",
    "logging_dir": "set TENSORBOARD_LOGGING_DIR",
    "overwrite_output_dir": "an interrupted run continues; give --resume_from_checkpoint no to start afresh",
    "push_to_hub_organization": "write it before the name in --hub_model_id",
    "fsdp_transformer_layer_cls_to_wrap": "the model names its layers itself",
    "fsdp_min_num_params": "put min_num_params into --fsdp_config",
    "include_tokens_per_second": "they are always shown",
}


def translate(argv: list[str]) -> list[str]:
    """Flags of transformers 4 as transformers 5 has them; one line on standard error says which were changed."""
    out, notes = [], []
    pairs = [(word[2:].replace("-", "_") if word.startswith("--") else "", word, value) for word, value in _pairs(argv)]
    steps = next((value[0] for name, _, value in reversed(pairs) if name == "warmup_steps" and value), "0")
    share = any(name == "warmup_ratio" for name, *_ in pairs)
    for name, word, value in pairs:
        if share and name == ("warmup_steps" if float(steps) == 0 else "warmup_ratio"):  # as transformers 4 had it
            notes.append(f"--{name} {' '.join(value)}: left out, the other of --warmup_steps and --warmup_ratio counts")
        elif name == "group_by_length":
            notes.append("--group_by_length: now --train_sampling_strategy group_by_length")
            out += ["--train_sampling_strategy", BY_LENGTH] if _on(value) else []
        elif name == "adafactor":
            notes.append("--adafactor: now --optim adafactor")
            out += ["--optim", "adafactor"] if _on(value) else []
        elif name == "tf32" and not torch.cuda.is_available():
            notes.append("--tf32: no CUDA device, left out")
        elif name not in _RENAMED:
            out += [word, *value]
        elif new := _RENAMED[name]:
            notes.append(f"--{name}: now --{new}")
            out += [f"--{new}", *value]
        else:
            notes.append(f"--{name}: left out, {_WHY.get(name, 'it has no effect any more')}")
    if notes:
        print(f"note: {'; '.join(notes)}", file=sys.stderr)
    return out


def _on(value: list[str]) -> bool:
    """A switch, with or without a word behind it."""
    return not value or value[0].lower() in ("true", "1", "yes")


def _pairs(argv: list[str]) -> list[tuple[str, list[str]]]:
    """Flags with the words that belong to them; ``--flag=value`` is cut in two."""
    out: list[tuple[str, list[str]]] = []
    for word in argv:
        if word.startswith("--") and "=" in word:
            flag, _, value = word.partition("=")
            out.append((flag, [value]))
        elif word.startswith("--") or not out:
            out.append((word, []))
        else:
            out[-1][1].append(word)
    return out


def parse(argv: list[str]) -> tuple[ModelArguments, DataArguments, TrainingArguments, MobArguments]:
    """All arguments of a run.

    Raises:
        ValueError: a value that cannot be; the message is one line.
    """
    parser = HfArgumentParser((ModelArguments, DataArguments, TrainingArguments, MobArguments))
    parser.prog = "python -m llava.train.train"
    words = translate(argv)
    if not any(word in ("--report_to", "--report-to") for word in words) and is_tensorboard_available():
        words += ["--report_to", "tensorboard"]
    model, data, training, mob, rest = parser.parse_args_into_dataclasses(words, return_remaining_strings=True)
    if rest:
        raise ValueError(_unknown(rest[0], list(parser._option_string_actions)))
    for name, value in (("model_name_or_path", model.model_name_or_path), ("data_path", data.data_path)):
        if not value:
            raise ValueError(f"--{name} is missing")
    if not training.output_dir:
        raise ValueError("--output_dir is missing")
    _choice("on_bad_sample", data.on_bad_sample, (STOP, SKIP))
    if data.image_aspect_ratio is not None:
        _choice("image_aspect_ratio", data.image_aspect_ratio, ("square", "pad", "anyres"))
    known = {"none", *get_available_reporting_integrations(), *(["tensorboard"] if is_tensorboard_available() else [])}
    if missing := set(training.report_to) - known:
        raise ValueError(f"--report_to {min(missing)}: it is not installed, install it or give --report_to none")
    return model, data, training, mob


def _unknown(word: str, flags: list[str]) -> str:
    if not word.startswith("-"):
        return f"{word!r} belongs to no flag: put a value that holds blanks into quotes"
    close = difflib.get_close_matches(word, flags, n=1, cutoff=0.8)
    hint = f"did you mean {close[0]}?" if close else "see python -m llava.train.train --help"
    return f"unknown flag {word}, {hint}"
