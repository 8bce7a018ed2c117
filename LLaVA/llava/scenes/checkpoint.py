"""Tokenizer, processor and model of the embedded checkpoint: a LLaVA small enough to ship, in plain Hugging Face form.

``build`` makes the untrained model, ``save`` writes the folder that stock ``LlavaForConditionalGeneration`` and
``AutoProcessor`` load. Weights are stored in float16 and run in float32.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from llava.scenes.generator import GRID, PATCH, SIZE
from llava.scenes.splits import SPLITS, split_of_vocabulary

PATH = Path(__file__).parent / "checkpoint"
# By split, the one that was trained on it; that of crowded scenes has seen easy ones too.
PATHS = {"easy": PATH, "crowded": Path(__file__).parent / "checkpoint-crowded"}
# Trained on easy scenes without the loss that makes question words point at their patches.
UNGROUNDED = Path(__file__).parent / "checkpoint-no-grounding"
# Trained as the embedded one by an older loop: how far two runs differ. The one for crowded scenes began here.
EARLIER = Path(__file__).parent / "checkpoint-earlier"
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
PROMPT = "USER: <image>\n{} ASSISTANT:"
NUM_PATCHES = GRID * GRID
_CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}USER: {% else %}ASSISTANT: {% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{{ ' ' if message['role'] == 'user' else '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def build_tokenizer(split: str = "easy") -> PreTrainedTokenizerFast:
    """Word-level tokenizer: lower case, punctuation and digits apart, anything unseen becomes ``<unk>``.

    That of crowded scenes knows the words of easy ones under the same ids, and more.
    """
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *SPLITS[split].words()])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation(), pre_tokenizers.Digits(individual_digits=True)]
    )
    core.decoder = decoders.Sequence(  # words joined by blanks, digits of one number and closing marks joined without
        [
            decoders.WordPiece(prefix="##", cleanup=False),
            decoders.Fuse(),
            decoders.Replace(Regex("(?<=[0-9]) (?=[0-9])| (?=[?.,:])"), ""),
        ]
    )
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
        padding_side="left",
        model_max_length=1024,
    )


def build_processor(split: str = "easy") -> LlavaProcessor:
    """Pictures of any size are resized and centre-cropped to 112 x 112, as CLIP does."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    half = [0.5, 0.5, 0.5]
    images = CLIPImageProcessorPil(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}, image_mean=half, image_std=half
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(split),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_CHAT_TEMPLATE,
    )


def split_of(model: LlavaForConditionalGeneration) -> str:
    """The scenes that a model of ours knows all words of. ValueError for other models."""
    return split_of_vocabulary(model.config.text_config.vocab_size - len(SPECIAL))


def build_config(split: str = "easy") -> LlavaConfig:
    vocabulary = len(SPECIAL) + len(SPLITS[split].words())
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
        projection_dim=128,
    )
    text = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=160,
        intermediate_size=416,
        num_hidden_layers=6,
        num_attention_heads=5,
        num_key_value_heads=5,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=SPECIAL.index("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=NUM_PATCHES,
        tie_word_embeddings=True,
    )


def build(seed: int = 0, split: str = "easy") -> LlavaForConditionalGeneration:
    """The untrained model, float32. Initialisation is what made so small a model learn; see ``_initialise``."""
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(build_config(split))
    _initialise(model)
    return model


@torch.no_grad()
def _initialise(model: LlavaForConditionalGeneration) -> None:
    """Linear weights N(0, 1/fan_in), residual outputs a further 1/sqrt(2 layers), word embeddings 0.5, last norm 0.25.

    Two heads of layers 1 to 3 start with W_k = W_q: they attend to what resembles the query, which is the first thing
    that a question about "the red star" needs.
    """
    tower, decoder = model.model.vision_tower, model.model.language_model
    depth = {"vision_tower": len(tower.encoder.layers), "language_model": len(decoder.layers)}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or name == "lm_head":
            continue
        std = 1 / math.sqrt(module.in_features)
        if name.endswith(("out_proj", "o_proj", "fc2", "down_proj")):
            std /= math.sqrt(2 * depth[name.split(".")[1]])
        nn.init.normal_(module.weight, std=std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    nn.init.normal_(decoder.embed_tokens.weight, std=0.5)
    nn.init.constant_(decoder.norm.weight, 0.25)
    width = decoder.config.head_dim
    for layer in decoder.layers[1:4]:
        attention = layer.self_attn
        attention.k_proj.weight[: 2 * width] = attention.q_proj.weight[: 2 * width]


def save(model: LlavaForConditionalGeneration, folder: str | Path) -> None:
    """Write weights in float16, config, generation defaults, tokenizer and processor to ``folder``."""
    half = LlavaForConditionalGeneration(model.config)
    half.load_state_dict(model.state_dict())
    half = half.to(torch.float16)
    half.generation_config = GenerationConfig(
        bos_token_id=1, eos_token_id=2, pad_token_id=0, max_new_tokens=8, do_sample=False
    )
    half.save_pretrained(folder)
    build_processor(split_of(model)).save_pretrained(folder)
