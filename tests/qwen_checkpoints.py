"""Synthetic Qwen-VL checkpoints on disk, tiny and random: in the hub's key layout, and as transformers saves them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast

SPECIAL = """
    <|endoftext|> <|im_start|> <|im_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>
""".split()  # noqa: SIM905
VOCABULARY = 512
LAYERS = 5
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
CLASSES = {
    "qwen2_vl": transformers.Qwen2VLForConditionalGeneration,
    "qwen2_5_vl": transformers.Qwen2_5_VLForConditionalGeneration,
    "qwen3_vl": transformers.Qwen3VLForConditionalGeneration,
}
CORPUS = (
    "system\nYou are a helpful assistant.\nuser\nassistant\nWhat safety hazards does this blueprint reveal?\n"
    "describe the picture and the video. seconds 0.3 1.2 a red star\n"
) * 20
SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
# What Qwen's template writes, in as few words as the tests need.
TEMPLATE = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nYou are a helpful "
    "assistant.<|im_end|>\n{% endif %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif c['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE as Qwen's, trained on a few sentences, with Qwen's special tokens and template."""
    core = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    core.train_from_iterator(CORPUS.splitlines(keepends=True), trainer)
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    made.chat_template = TEMPLATE
    return made


def ids(made: PreTrainedTokenizerFast) -> dict[str, int]:
    return {token: made.convert_tokens_to_ids(token) for token in SPECIAL}


def flat_config(family: str, made: PreTrainedTokenizerFast) -> dict:
    """config.json as on the hub: text settings flat for Qwen2-VL and Qwen2.5-VL, nested for Qwen3-VL."""
    token = ids(made)
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "bos_token_id": token["<|endoftext|>"],
        "eos_token_id": token["<|im_end|>"],
    }
    top = {
        "architectures": [CLASSES[family].__name__],
        "model_type": family,
        "image_token_id": token["<|image_pad|>"],
        "video_token_id": token["<|video_pad|>"],
        "vision_start_token_id": token["<|vision_start|>"],
        "vision_end_token_id": token["<|vision_end|>"],
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }
    vision = {
        "depth": 2,
        "num_heads": 2,
        "in_chans": 3,
        "in_channels": 3,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    if family == "qwen3_vl":
        rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
        vision |= {"depth": 3, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 48, "patch_size": 16}
        vision |= {"deepstack_visual_indexes": [0, 1, 2], "num_position_embeddings": 64, "model_type": "qwen3_vl"}
        return top | {"text_config": text | {"head_dim": 16, "rope_parameters": rope}, "vision_config": vision}
    rope = {
        "rope_scaling": {"type": "mrope", "mrope_section": [4, 2, 2]},
        "rope_theta": 1e6,
        "use_sliding_window": False,
    }
    vision |= {"patch_size": 14, "model_type": family}
    if family == "qwen2_vl":
        return top | text | rope | {"vision_config": vision | {"embed_dim": 32, "hidden_size": 48, "mlp_ratio": 2}}
    vision |= {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 48, "window_size": 56}
    return top | text | rope | {"vision_config": vision | {"fullatt_block_indexes": [1], "tokens_per_second": 2}}


def model(family: str, made: PreTrainedTokenizerFast, seed: int = 0) -> transformers.PreTrainedModel:
    """Random weights, large enough that attention really chooses and that answers differ between pictures."""
    values = flat_config(family, made)
    config = transformers.AutoConfig.for_model(
        **{k: v for k, v in values.items() if k not in ("architectures", "torch_dtype")}
    )
    torch.manual_seed(seed)
    out = CLASSES[family](config).eval()
    with torch.no_grad():
        for name, parameter in out.named_parameters():
            if parameter.ndim >= 2:
                parameter.mul_(8.0 if "lm_head" in name or "language_model" in name else 4.0)
        out.lm_head.weight[ids(made)[SPECIAL[0]] :] = 0  # an untrained model would write special tokens
    return out


def preprocessor(family: str) -> dict:
    """preprocessor_config.json as on the hub, with fewer pixels."""
    values = {"temporal_patch_size": 2, "merge_size": 2}
    if family == "qwen3_vl":
        values |= {"size": {"shortest_edge": 64 * 64, "longest_edge": 16 * 32 * 32}, "patch_size": 16}
        values |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        return values | {"image_processor_type": "Qwen2VLImageProcessorFast"}
    values |= {"min_pixels": 56 * 56, "max_pixels": 16 * 28 * 28, "patch_size": 14}
    values |= {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
    return values | {"image_processor_type": "Qwen2VLImageProcessor"}


def side_files(folder: Path, family: str, made: PreTrainedTokenizerFast) -> None:
    made.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor(family)))
    if family == "qwen3_vl":
        video = preprocessor(family) | {"size": {"shortest_edge": 4096, "longest_edge": 64 * 32 * 32}}
        (folder / "video_preprocessor_config.json").write_text(json.dumps(video))
    stops = [made.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")]
    GenerationConfig(do_sample=False, eos_token_id=stops, pad_token_id=stops[1], bos_token_id=stops[1]).save_pretrained(
        folder
    )


def hub_folder(folder: Path, family: str, source: transformers.PreTrainedModel, made: PreTrainedTokenizerFast) -> Path:
    """Names of weights and config.json as Qwen publishes them."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.clone().contiguous() for name, value in source.state_dict().items()}
    if family != "qwen3_vl":
        state = {re.sub(r"^model\.language_model\.", "model.", name): value for name, value in state.items()}
        state = {re.sub(r"^model\.visual\.", "visual.", name): value for name, value in state.items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(flat_config(family, made)))
    side_files(folder, family, made)
    return folder


def saved_folder(
    folder: Path, family: str, source: transformers.PreTrainedModel, made: PreTrainedTokenizerFast
) -> Path:
    """The same weights by ``save_pretrained``."""
    source.save_pretrained(folder)
    side_files(folder, family, made)
    return folder
