"""Synthetic checkpoints on disk, tiny and random, in the layouts of transformers and of the original repository."""

from __future__ import annotations

import copy
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    MistralConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

IMAGE_SIZE, PATCH = 28, 14
VOCABULARY = 320
CORPUS = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: describe the picture ASSISTANT: it shows a red star. human\n"
) * 40


def sentencepiece_file(folder: Path, **pieces) -> None:
    """tokenizer.model with the given special pieces, beside those of Llama-2."""
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
        **pieces,
    )
    (folder / "tokenizer.model").write_bytes(out.getvalue())


def sentencepiece_model(folder: Path) -> None:
    """tokenizer.model and tokenizer_config.json as the original checkpoints have them (Llama-2 settings)."""
    sentencepiece_file(folder)
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


CHATML_IDS = {"<|startoftext|>": 1, "<|endoftext|>": 2, "<|im_start|>": 6, "<|im_end|>": 7}


def chatml_tokenizer(folder: Path) -> None:
    """As ``liuhaotian/llava-v1.6-34b`` has it from Nous-Hermes-2-Yi-34B: no BOS, ends at <|im_end|>, legacy false."""
    human = ["<|Human|>", "<|Assistant|>", "<|System|>"]
    sentencepiece_file(
        folder,
        bos_piece="<|startoftext|>",
        eos_piece="<|endoftext|>",
        user_defined_symbols=[*human, "<|im_start|>", "<|im_end|>"],
    )
    settings = {
        "add_bos_token": False,
        "add_eos_token": False,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<unk>",
        "unk_token": "<unk>",
        "legacy": False,
        "model_max_length": 4096,
        "padding_side": "right",
        "tokenizer_class": "LlamaTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


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


PINPOINTS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]  # (width, height), as the original writes them


def next_model(seed: int = 0, mistral: bool = False) -> LlavaNextForConditionalGeneration:
    """The same sizes as a LLaVA-1.6; packed by the stock rule, so pictures are chosen on which both rules agree."""
    torch.manual_seed(seed)
    text = model().config.text_config.to_dict()
    text = {key: text[key] for key in TEXT_KEYS}
    config = LlavaNextConfig(
        vision_config=vision_config(),
        text_config=MistralConfig(**text, sliding_window=None) if mistral else LlamaConfig(**text),
        image_token_index=VOCABULARY - 1,
        vision_feature_layer=-2,
        projector_hidden_act="gelu",
        image_grid_pinpoints=[pair[::-1] for pair in PINPOINTS],
    )
    made = LlavaNextForConditionalGeneration(config).eval()
    torch.nn.init.normal_(made.model.image_newline)
    return made


TEXT_KEYS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
TEXT_KEYS += ("num_key_value_heads", "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")


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


NEXT = {
    "image_aspect_ratio": "anyres",
    "mm_patch_merge_type": "spatial_unpad",
    "image_grid_pinpoints": PINPOINTS,
    "tokenizer_model_max_length": 4096,
}


def lora_folder(folder: Path, source: LlavaForConditionalGeneration, **extra) -> LlavaForConditionalGeneration:
    """A LoRA of rank 2 on the linear layers of the language model, with its projector; returns the merged model."""
    import peft

    merged = copy.deepcopy(source)
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in merged.model.multi_modal_projector.parameters():
            parameter.normal_()
    layers = merged.model.language_model.layers
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=targets, task_type="CAUSAL_LM", **extra)
    folder.mkdir(parents=True)
    adapter = {}
    for number, layer in enumerate(layers):
        for name, linear in layer.named_modules():
            if not name.endswith(tuple(targets)):
                continue
            a, b = torch.randn(2, linear.in_features) / 8, torch.randn(linear.out_features, 2)
            prefix = f"base_model.model.model.layers.{number}.{name}"
            adapter |= {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}
            linear.weight.data += (3.0 if not extra.get("use_rslora") else 6 / 2**0.5) * (b @ a)
    config.save_pretrained(folder)
    save_file(adapter, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    projector = {k: v for k, v in original_weights(merged, False).items() if "mm_projector" in k or "newline" in k}
    torch.save(
        {f"base_model.model.{name}": value for name, value in projector.items()}, folder / "non_lora_trainables.bin"
    )
    return merged


def base_folder(folder: Path, source: LlavaForConditionalGeneration) -> Path:
    """The language model alone, as ``lmsys/vicuna-7b-v1.5``."""
    text = source.config.text_config
    language = LlamaForCausalLM(text)
    state = {k.replace("model.language_model.", "model."): v for k, v in source.state_dict().items()}
    language.load_state_dict({k: v for k, v in state.items() if k in language.state_dict()})
    language.save_pretrained(folder)
    sentencepiece_model(folder)
    return folder


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


def original_config(tower: Path, source: LlavaForConditionalGeneration, with_tower: bool = False, **extra) -> dict:
    """config.json as the original writes it."""
    text = source.config.text_config
    config: dict = {
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
    return config | extra


def original_folder(
    folder: Path,
    tower: Path,
    source: LlavaForConditionalGeneration,
    *,
    weights: str = "bin",
    with_tower: bool = False,
    write_tokenizer: Callable[[Path], None] = sentencepiece_model,
    **extra,
) -> Path:
    """A folder like ``liuhaotian/llava-v1.5-7b``: two .bin shards with an index, or one safetensors file."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(original_config(tower, source, with_tower, **extra)))
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
    # Of no use, but published beside the whole model: the projector that the training began with.
    first = {name: torch.zeros_like(value) for name, value in state.items() if "mm_projector" in name}
    torch.save(first, folder / "mm_projector.bin")
    return folder


TEMPLATE = (
    "{% for m in messages %}USER: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image>\n"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %} ASSISTANT:"
)


def stock_folder(
    folder: Path,
    source: LlavaForConditionalGeneration,
    write_tokenizer: Callable[[Path], None] = sentencepiece_model,
    template: str = TEMPLATE,
) -> Path:
    """The same weights in the layout of transformers (llava-hf), with room for ``<image>`` and ``<pad>``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder)
    tokenizer = LlamaTokenizer.from_pretrained(folder, legacy=write_tokenizer is sentencepiece_model)
    tokenizer.add_tokens(["<image>", "<pad>"], special_tokens=True)
    tokenizer.pad_token = "<pad>"
    tokenizer.chat_template = template
    twin = copy.deepcopy(source)
    twin.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64, mean_resizing=False)
    twin.config.image_token_index = tokenizer.convert_tokens_to_ids("<image>")
    twin.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    sizes = {"size": {"shortest_edge": IMAGE_SIZE}, "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE}}
    if source.config.model_type == "llava_next":
        pinpoints = source.config.image_grid_pinpoints
        LlavaNextImageProcessorPil(**sizes, image_grid_pinpoints=pinpoints).save_pretrained(folder)
    else:
        CLIPImageProcessorPil(**sizes).save_pretrained(folder)
    return folder
