"""LLaVA-1.6 in both layouts, LoRA and projector-only folders: the same weights give the same answers."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
import transformers
from PIL import Image

import checkpoints
from llava.constants import IMAGE_TOKEN_INDEX
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model

PROMPT = "USER: <image>\ndescribe the picture ASSISTANT:"
SIZES = [(40, 40), (80, 30), (30, 64), (90, 30)]  # both rules of cutting padding agree on these


@pytest.fixture(scope="module")
def source():
    return checkpoints.next_model()


@pytest.fixture(scope="module")
def tower(tmp_path_factory, source):
    return checkpoints.tower_folder(tmp_path_factory.mktemp("tower"), source)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, source, tower):
    """LLaVA-1.6 in the original layout (its own tower, in safetensors or .bin), and in that of transformers."""
    root = tmp_path_factory.mktemp("models")
    other = checkpoints.tower_folder(tmp_path_factory.mktemp("other"), checkpoints.model(seed=9))
    make = checkpoints.original_folder
    return {
        "safetensors": make(
            root / "llava-v1.6-st", other, source, weights="safetensors", with_tower=True, **checkpoints.NEXT
        ),
        "bin": make(root / "llava-v1.6-bin", other, source, with_tower=True, **checkpoints.NEXT),
        "towerless": make(root / "llava-v1.6-x", tower, source, **checkpoints.NEXT),
        "stock": checkpoints.stock_folder(root / "llava-v1.6-hf", source),
    }


def load(folder, base=None, **kwargs):
    return load_pretrained_model(str(folder), base and str(base), "llava-v1.6-mob", device="cpu", **kwargs)


def picture(size):
    return Image.linear_gradient("L").resize(size).convert("RGB").transpose(Image.Transpose.ROTATE_90).resize(size)


def logits(model, tokenizer, image_processor, size=SIZES[0]):
    ids = tokenizer_image_token(PROMPT, tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt")[None]
    pixels = process_images([picture(size)], image_processor, model.config)
    with torch.no_grad():
        out = model(**model.expand_images(ids, None, pixels, [size])).logits
    return out[..., : checkpoints.VOCABULARY]


@pytest.mark.parametrize("layout", ["safetensors", "bin", "towerless", "stock"])
def test_every_layout_gives_the_source_model(folders, source, layout):
    tokenizer, model, image_processor, _ = load(folders[layout])
    assert isinstance(model, transformers.LlavaNextForConditionalGeneration) and model.config.MoB_config == {}
    ours = model.state_dict()
    for name, value in source.state_dict().items():
        assert torch.equal(ours[name][: len(value)], value), name
    stock = load(folders["stock"])
    for size in SIZES:
        theirs = logits(stock[1], stock[0], stock[2], size)
        assert torch.allclose(logits(model, tokenizer, image_processor, size), theirs, atol=1e-5), size


@pytest.mark.parametrize("layout", ["safetensors", "stock"])
def test_the_stock_processor_sees_the_same_picture(folders, layout):
    """Tiles of ours and of transformers are alike but for resampling, and the counts agree with its processor."""
    tokenizer, model, image_processor, _ = load(folders[layout])
    stock = load(folders["stock"])[2]
    for size in SIZES:
        ours = process_images([picture(size)], image_processor, model.config)[0]
        theirs = stock([picture(size)], return_tensors="pt")["pixel_values"][0]
        assert ours.shape == theirs.shape and (ours - theirs).abs().max() < 0.1


@pytest.mark.parametrize("layout", ["safetensors", "bin", "stock"])
def test_save_and_reload(folders, layout, tmp_path):
    tokenizer, model, image_processor, _ = load(folders[layout])
    before = logits(model, tokenizer, image_processor, SIZES[1])
    for part in (model, tokenizer, image_processor):
        part.save_pretrained(tmp_path)
    _, info = transformers.LlavaNextForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["LlavaNextForConditionalGeneration"]
    again = load(tmp_path)
    assert torch.equal(logits(again[1], again[0], again[2], SIZES[1]), before)


def test_padding_is_cut_by_the_originals_rule(folders):
    """27 rows: by floats a hair less, so that the original keeps 26 of 48 where transformers keeps 28."""
    _, model, _, _ = load(folders["safetensors"])
    vision = model.config.vision_config
    vision.image_size, vision.patch_size = 336, 14
    model.config.image_grid_pinpoints = [[672, 336], [336, 672], [672, 672], [336, 1008], [1008, 336]]
    features = [torch.randn(5, 576, 48)]
    packed, lengths = model.model.pack_image_features(features, [(396, 704)], "default", model.model.image_newline)
    assert lengths.tolist() == [576 + 26 * 49]
    del model.config.mm_patch_merge_type
    _, stock = model.model.pack_image_features(
        features, torch.tensor([[396, 704]]), "default", model.model.image_newline
    )
    assert stock.tolist() == [576 + 28 * 49]
    assert torch.equal(packed[0][:576], features[0][0])
    tiles = features[0][1:].reshape(2, 2, 24, 24, 48)
    for row, column in ((0, 0), (12, 30), (25, 47)):  # by hand: which tile, and where in it
        y = row + 11
        expected = tiles[y // 24, column // 24, y % 24, column % 24]
        assert torch.equal(packed[0][576 + row * 49 + column], expected)
        assert torch.equal(packed[0][576 + row * 49 + 48], model.model.image_newline)


def test_mistral(tmp_path, tower):
    source = checkpoints.next_model(mistral=True)
    extra = {"architectures": ["LlavaMistralForCausalLM"], "model_type": "llava_mistral", "sliding_window": None}
    folder = checkpoints.original_folder(tmp_path / "llava-v1.6-mistral", tower, source, **checkpoints.NEXT, **extra)
    tokenizer, model, image_processor, _ = load(folder)
    assert model.config.text_config.model_type == "mistral" and model.config.text_config.sliding_window is None
    stock = load(checkpoints.stock_folder(tmp_path / "llava-v1.6-mistral-hf", source))
    assert torch.allclose(logits(model, tokenizer, image_processor), logits(stock[1], stock[0], stock[2]), atol=1e-5)


def test_a_config_for_another_model_warns_once_and_the_picture_wins(folders):
    """The release notes set 35 and 576 on a LLaVA-1.6, whose pictures have up to 2928 tokens."""
    tokenizer, model, image_processor, _ = load(folders["safetensors"])
    settings = {"l_idx": 2, "image_token_start_index": 35, "image_token_length": 576}
    model.config.MoB_config.update(settings | {"K": 5, "Kp_ratio": 0.5, "k_ratio": 0.5})
    model.pruning.record = True
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        logits(model, tokenizer, image_processor)
        logits(model, tokenizer, image_processor)
    assert len([w for w in caught if "The input is right" in str(w.message)]) == 1
    record = model.pruning.records[-1]
    assert (record.N, record.K) == (4 + 4 * 5, 5) and record.grids == [[[2, 2], [4, 4]]]


def test_several_pictures_and_a_batch(folders):
    """Pictures of different sizes, in a prompt and in a batch, the original way."""
    tokenizer, model, image_processor, _ = load(folders["safetensors"])
    prompts = ["USER: <image> and <image>\nwhich ASSISTANT:", "USER: <image>\nthe star ASSISTANT:"]
    rows = [tokenizer_image_token(prompt, tokenizer) for prompt in prompts]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    pictures = [picture(size) for size in SIZES[:3]]
    pixels = process_images(pictures, image_processor, model.config)
    assert [len(tiles) for tiles in pixels] == [5, 4, 4]
    model.config.MoB_config = {"K": 6}
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    both = model.generate(ids, attention_mask=mask, images=pixels, image_sizes=SIZES[:3], **options)
    for row, part in enumerate((slice(0, 2), slice(2, 3))):
        alone = model.generate(torch.tensor([rows[row]]), images=pixels[part], image_sizes=SIZES[part], **options)
        assert torch.equal(both[row], alone[0])
    with pytest.raises(ValueError, match="image_sizes is needed"):
        model.generate(torch.tensor([rows[1]]), images=pixels[2:], **options)


@pytest.mark.parametrize("size", [(1, 1), (5000, 10), (10, 5000), (3, 2000)])
def test_odd_pictures(folders, size):
    for layout in ("safetensors", "stock"):
        tokenizer, model, image_processor, _ = load(folders[layout])
        assert logits(model, tokenizer, image_processor, size).isfinite().all()


# Adapters


@pytest.fixture(scope="module", params=["1.5", "1.6"])
def adapter(request, tmp_path_factory):
    """A base model, a LoRA folder and a projector folder on it, and the model that the LoRA makes."""
    pytest.importorskip("peft")
    root = tmp_path_factory.mktemp("adapters")
    source = checkpoints.model() if request.param == "1.5" else checkpoints.next_model()
    extra = {} if request.param == "1.5" else checkpoints.NEXT
    tower = checkpoints.tower_folder(root / "tower", source)
    base = checkpoints.base_folder(root / "vicuna", source)
    merged = checkpoints.lora_folder(root / "llava-lora", source)
    projector = root / "llava-projector"
    projector.mkdir()
    weights = checkpoints.original_weights(merged, False)
    torch.save(
        {k: v for k, v in weights.items() if "mm_projector" in k or "newline" in k}, projector / "mm_projector.bin"
    )
    for folder in (root / "llava-lora", projector):
        config = checkpoints.original_config(tower, source, **extra)
        (folder / "config.json").write_text(json.dumps(config))
    return base, root / "llava-lora", projector, source, merged


def same_weights(model, expected):
    ours = model.state_dict()
    for name, value in expected.items():
        assert torch.allclose(ours[name][: len(value)], value, atol=1e-5), name


def test_lora_is_merged(adapter):
    base, lora, _, _, merged = adapter
    tokenizer, model, image_processor, _ = load(lora, base)
    same_weights(model, merged.state_dict())
    assert not any("lora" in name for name, _ in model.named_modules())
    model.config.MoB_config = {"K": 2}
    plain = logits(model, tokenizer, image_processor)
    model.config.MoB_config = {}
    assert not torch.equal(plain, logits(model, tokenizer, image_processor))


def test_a_projector_on_a_base(adapter):
    base, _, projector, source, merged = adapter
    _, model, _, _ = load(projector, base)
    expected = dict(source.state_dict())
    expected |= {k: v for k, v in merged.state_dict().items() if "projector" in k}
    same_weights(model, expected)


def test_merged_models_can_be_saved(adapter, tmp_path):
    base, lora, _, _, merged = adapter
    tokenizer, model, image_processor, _ = load(lora, base)
    for part in (model, tokenizer, image_processor):
        part.save_pretrained(tmp_path)
    same_weights(load(tmp_path)[1], merged.state_dict())


def test_adapters_without_their_base(adapter):
    with pytest.raises(ValueError, match="give model_base"):
        load(adapter[1])


def test_adapter_folders_that_do_not_fit(adapter, tmp_path, tower):
    base, lora, projector, source, _ = adapter
    with pytest.raises(ValueError, match="holds a whole model: leave model_base out"):
        load(base, base)
    with pytest.raises(ValueError, match="layout of transformers"):
        load(projector, checkpoints.stock_folder(tmp_path / "hf", source))
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in lora.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    state = torch.load(broken / "non_lora_trainables.bin", weights_only=True)
    state.pop("base_model.model.model.mm_projector.2.bias")
    torch.save(state, broken / "non_lora_trainables.bin")
    with pytest.raises(ValueError, match="linear_2.bias: the adapter is incomplete"):
        load(broken, base)
    state["base_model.model.model.mm_projector.2.bias"] = torch.zeros(3)
    torch.save(state, broken / "non_lora_trainables.bin")
    with pytest.raises(ValueError, match="of shape .3,., for which the base model has no place"):
        load(broken, base)
