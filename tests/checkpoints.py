"""Synthetic checkpoints on disk, tiny and random, in the layouts of transformers and of the original repository."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

IMAGE_SIZE, PATCH = 28, 14
VOCABULARY = 320
CORPUS = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: describe the picture ASSISTANT: it shows a red star. human\n"
) * 40


def sentencepiece_model(folder: Path) -> None:
    """tokenizer.model and tokenizer_config.json as the original checkpoints have them (Llama-2 settings)."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS.splitlines()),
        model_writer=out,
        vocab_size=VOCABULARY,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=True,
        pad_id=-1,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(out.getvalue())
    settings = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "legacy": False,
        "tokenizer_class": "LlamaTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    special = {key: settings[key] for key in ("bos_token", "eos_token", "unk_token")}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))


def vision_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
        projection_dim=32,
    )


def model(seed: int = 0) -> LlavaForConditionalGeneration:
    """The weights that every layout below holds; vocabulary as in the original, without room for ``<image>``."""
    torch.manual_seed(seed)
    text = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    config = LlavaConfig(
        vision_config=vision_config(),
        text_config=text,
        image_token_index=VOCABULARY - 1,
        vision_feature_layer=-2,
        projector_hidden_act="gelu",
    )
    return LlavaForConditionalGeneration(config).eval()


def tower_folder(folder: Path, source: LlavaForConditionalGeneration) -> Path:
    """The vision tower on its own, as ``openai/clip-vit-large-patch14-336`` is."""
    tower = CLIPVisionModel(source.config.vision_config)
    tower.load_state_dict(source.model.vision_tower.state_dict())
    tower.save_pretrained(folder)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=size).save_pretrained(folder)
    return folder


ORIGINAL_NAMES = (
    (r"^model\.language_model\.", "model."),
    (r"^model\.multi_modal_projector\.linear_1", "model.mm_projector.0"),
    (r"^model\.multi_modal_projector\.linear_2", "model.mm_projector.2"),
    (r"^model\.vision_tower\.", "model.vision_tower.vision_tower.vision_model."),
)


def original_weights(source: LlavaForConditionalGeneration, tower: bool) -> dict[str, torch.Tensor]:
    """State dict under the original names, with the buffers that old files carry."""
    out = {}
    for name, value in source.state_dict().items():
        if name.startswith("model.vision_tower.") and not tower:
            continue
        for pattern, replacement in ORIGINAL_NAMES:
            name = re.sub(pattern, replacement, name)
        out[name] = value.clone().contiguous()
    out["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(6)
    return out


def original_folder(
    folder: Path,
    tower: Path,
    source: LlavaForConditionalGeneration,
    *,
    weights: str = "bin",
    with_tower: bool = False,
    **extra,
) -> Path:
    """A folder like ``liuhaotian/llava-v1.5-7b``: two .bin shards with an index, or one safetensors file."""
    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece_model(folder)
    text = source.config.text_config
    config = {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava",
        "vocab_size": VOCABULARY,
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "num_hidden_layers": text.num_hidden_layers,
        "num_attention_heads": text.num_attention_heads,
        "num_key_value_heads": text.num_key_value_heads,
        "hidden_act": "silu",
        "max_position_embeddings": text.max_position_embeddings,
        "rms_norm_eps": text.rms_norm_eps,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "max_length": 4096,
        "pretraining_tp": 1,
        "image_aspect_ratio": "pad",
        "mm_vision_tower": str(tower),
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": 32,
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "tune_mm_mlp_adapter": False,
        "unfreeze_mm_vision_tower": with_tower,
        "use_mm_proj": True,
    }
    (folder / "config.json").write_text(json.dumps(config | extra))
    state = original_weights(source, with_tower)
    if weights == "safetensors":
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    names = sorted(state)
    shards = {f"pytorch_model-{i + 1:05d}-of-00002.bin": names[i::2] for i in range(2)}
    for file, part in shards.items():
        torch.save({name: state[name] for name in part}, folder / file)
    index = {"metadata": {"total_size": 0}, "weight_map": {n: f for f, part in shards.items() for n in part}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


def stock_folder(folder: Path, source: LlavaForConditionalGeneration) -> Path:
    """The same weights in the layout of transformers (llava-hf), with room for ``<image>`` and ``<pad>``."""
    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece_model(folder)
    tokenizer = LlamaTokenizer.from_pretrained(folder, legacy=True)
    tokenizer.add_tokens(["<image>", "<pad>"], special_tokens=True)
    tokenizer.pad_token = "<pad>"
    tokenizer.chat_template = (
        "{% for m in messages %}USER: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image>\n"
        "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %} ASSISTANT:"
    )
    copy = model()
    copy.load_state_dict(source.state_dict())
    copy.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64, mean_resizing=False)
    copy.config.image_token_index = tokenizer.convert_tokens_to_ids("<image>")
    copy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=size).save_pretrained(folder)
    return folder
