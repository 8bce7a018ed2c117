"""LLaVA-NeXT-Video in the layout of its original repository: CLIP tower inside or not, pooling as config.json says."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace

import pytest
import torch
import transformers
from PIL import Image

import next_checkpoints as made
from llava.constants import IMAGE_TOKEN_INDEX
from llava.mm_utils import tokenizer_image_token
from llava.model.formats import load_stock_tokenizer
from llava_next import run
from llava_next.mm_utils import process_video
from llava_next.model.builder import family
from llava_next.model.next_video import load_next_video, next_video_config
from llava_next.processing import prepare, token_ids
from llava_next.prompts import build_prompt, usual_mode
from next_checkpoints import NEXT_VIDEO, load

SIDE = made.SIDES[NEXT_VIDEO] // 14  # patches of a row
NAMES = ("mm_resampler_type", "mm_spatial_pool_mode", "mm_spatial_pool_stride")
# With these tiles, the two rules for cutting padding agree on the first picture, and differ on the second.
TILES = {"image_grid_pinpoints": made.pinpoints(made.SIDES[NEXT_VIDEO], 3)}
SIZES = [(90, 60), (47, 188)]


def source_of(root, seed=0, mistral=False, **pooling):
    """A stock model; with the pooling layer that ``pooling`` asks for."""
    probe = root / "tokenizer"
    made.llama_tokenizer(probe)
    config = made.config(NEXT_VIDEO, made.places_of(probe))
    for key, value in pooling.items():
        setattr(config, key, value)
    if mistral:
        config.text_config = made.text(transformers.MistralConfig, 448, sliding_window=None)
    torch.manual_seed(seed)
    built = made.STOCK[NEXT_VIDEO](config).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(6.0) if parameter.ndim == 2 else None
    return built


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return source_of(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def towers(tmp_path_factory, source):
    """The tower that the model has, and another of the same shape."""
    root = tmp_path_factory.mktemp("towers")
    right = made.tower_folder(root / "right", NEXT_VIDEO, source)
    return SimpleNamespace(right=right, other=made.tower_folder(root / "other", NEXT_VIDEO))


def write(folder, source, tower, **more):
    return made.original_folder(folder, NEXT_VIDEO, source, tower, **more)


def without_tower(source):
    names = made.original_weights(NEXT_VIDEO, source)
    return dict.fromkeys(name for name in names if name.startswith("model.vision_tower."))


def picture_of(size):
    return Image.linear_gradient("L").rotate(30).resize(size).convert("RGB")


def given(tokenizer, processor, config, size=SIZES[0], frames=3):
    picture = picture_of(size)
    video = process_video(made.frames(), processor, frames)
    return prepare("describe the picture <image> and <video> of it", tokenizer, processor, config, [picture], [video])


@torch.no_grad()
def same_logits(loaded, source, **kwargs):
    tokenizer, model, processor, _ = loaded
    inputs = given(tokenizer, processor, model.config, **kwargs)
    rows = source.config.text_config.vocab_size - 10
    return torch.equal(model(**inputs).logits[..., :rows], source(**inputs).logits[..., :rows])


# ---------------------------------------------------------------------------------------------------------------
# Weights


@pytest.mark.parametrize("weights", ["bin", "safetensors"])
@pytest.mark.parametrize("where", ["inside", "named", "given"])
def test_the_tower_is_inside_or_named_or_given(tmp_path, source, towers, weights, where):
    """Inside: its own weights win over those of the folder that config.json names."""
    named = towers.right if where == "named" else towers.other
    extra = None if where == "inside" else without_tower(source)
    folder = write(tmp_path / "x", source, named, weights=weights, extra=extra)
    loaded = load(folder, **({"vision_tower": str(towers.right)} if where == "given" else {}))
    for name, value in source.state_dict().items():
        assert torch.equal(loaded[1].state_dict()[name][: len(value)], value), name
    assert same_logits(loaded, source)


def test_one_bin_file_without_an_index(tmp_path, source, towers):
    folder = write(tmp_path / "x", source, towers.other)
    (folder / "pytorch_model.bin.index.json").unlink()
    shards = sorted(folder.glob("pytorch_model-*.bin"))
    state = {name: value for file in shards for name, value in torch.load(file, weights_only=True).items()}
    torch.save(state, folder / "pytorch_model.bin")
    for file in shards:
        file.unlink()
    assert same_logits(load(folder), source)


def test_a_projector_below_the_resampler(tmp_path, source, towers):
    """The published conversion of these checkpoints drops such a level from the names."""
    state = made.original_weights(NEXT_VIDEO, source)
    moved = {
        name.replace("model.mm_projector", "model.vision_resampler.mm_projector"): value
        for name, value in state.items()
        if "mm_projector" in name
    }
    folder = write(tmp_path / "x", source, towers.other, extra=dict.fromkeys(n for n in state if "mm_projector" in n))
    assert len(moved) == 4
    made.save_file(
        {name: value for name, value in state.items() if "mm_projector" not in name} | moved,
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    for file in folder.glob("pytorch_model*"):
        file.unlink()
    assert same_logits(load(folder), source)


@pytest.mark.parametrize(
    "name, message",
    [
        ("lm_head.weight", "missing: lm_head.weight"),
        ("model.image_newline", "missing: model.image_newline"),
        ("model.mm_projector.2.bias", "missing: model.multi_modal_projector.linear_2.bias"),
        ("model.vision_tower.vision_tower.vision_model.encoder.layers.1.mlp.fc1.bias", "missing: model.vision_tower"),
    ],
)
def test_what_is_missing_is_named(tmp_path, source, towers, name, message):
    with pytest.raises(ValueError, match=message):
        load(write(tmp_path / "x", source, towers.right, weights="safetensors", extra={name: None}))


def test_what_is_left_over_is_named(tmp_path, source, towers):
    extra = {"model.vision_resampler.query": torch.ones(3)}
    with pytest.raises(ValueError, match=r"left over: model\.vision_resampler\.query"):
        load(write(tmp_path / "x", source, towers.right, extra=extra))


def test_a_tower_without_weights_anywhere(tmp_path, source, towers):
    empty = tmp_path / "empty"
    empty.mkdir()
    for file in towers.right.glob("*.json"):
        (empty / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="cannot be loaded"):
        load(write(tmp_path / "x", source, empty, extra=without_tower(source)))
    with pytest.raises(ValueError, match="names no mm_vision_tower: give vision_tower="):
        load_next_video(write(tmp_path / "y", source, towers.right), {"mm_spatial_pool_stride": 2})


# ---------------------------------------------------------------------------------------------------------------
# Pooling


def pooled(features, mode, stride, weight=None, bias=None):
    """(F, side * side, d) -> (F, cells, d), cell by cell."""
    grid = features.reshape(len(features), SIDE, SIDE, -1)
    cells = []
    for y in range(0, SIDE - stride + 1, stride):
        for x in range(0, SIDE - stride + 1, stride):
            block = grid[:, y : y + stride, x : x + stride]
            if mode == "conv":
                cells.append(torch.einsum("fyxd,odyx->fo", block, weight) + bias)
            else:
                flat = block.flatten(1, 2)
                cells.append(flat.mean(1) if mode == "average" else flat.amax(1))
    return torch.stack(cells, 1)


@pytest.mark.parametrize("mode", ["average", "max", "conv"])
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@torch.no_grad()
def test_frames_are_pooled_as_config_json_says(tmp_path, mode, stride):
    source = source_of(tmp_path, spatial_pool_mode=mode, spatial_pool_stride=stride)
    tower = made.tower_folder(tmp_path / "tower", NEXT_VIDEO)
    loaded = load(write(tmp_path / "x", source, tower, weights="safetensors"))
    _, model, processor, _ = loaded
    assert (model.config.spatial_pool_mode, model.config.spatial_pool_stride) == (mode, stride)
    assert same_logits(loaded, source)
    frames = process_video(made.frames(), processor, 3)
    features = model.model.vision_tower(frames, output_hidden_states=True).hidden_states[-2][:, 1:]
    pool = model.model.vision_resampler.pool
    small = pooled(features, mode, stride, *(pool.parameters() if mode == "conv" else ()))
    expected = model.model.multi_modal_projector(small).flatten(0, 1)
    found = model.get_video_features(frames[None])
    found = found.pooler_output if hasattr(found, "pooler_output") else found
    assert torch.allclose(
        found[0].reshape(expected.shape), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())
    )
    model.config.MoB_config = {"K": 1, "l_idx": 1}
    model.pruning.record = True
    video = prepare("what is <video> there", *loaded[:1], processor, model.config, (), [frames])
    model(**video)
    assert model.pruning.records[-1].N == 3 * (SIDE // stride) ** 2 == len(expected)


@pytest.mark.parametrize("pooling", [{"spatial_pool_mode": "conv"}, {"spatial_pool_mode": "max"}])
def test_save_and_reload(tmp_path, pooling):
    source = source_of(tmp_path, **pooling, **TILES)
    tower = made.tower_folder(tmp_path / "tower", NEXT_VIDEO)
    tokenizer, model, processor, _ = load(write(tmp_path / "x", source, tower), MoB_config={"K": 3})
    for part in (model, tokenizer, processor):
        part.save_pretrained(tmp_path / "saved")
    _, info = made.STOCK[NEXT_VIDEO].from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    again = load(tmp_path / "saved")
    assert again[1].config.MoB_config == {"K": 3} and again[3] == 4096
    again[1].config.MoB_config = {}
    assert same_logits(again, source)
    model.config.MoB_config = {}
    for size in SIZES:  # the rule for cutting padding is saved too
        both = [
            given(tokens, views, one.config, size) for tokens, one, views in ((tokenizer, model, processor), again[:3])
        ]
        assert torch.equal(both[0]["input_ids"], both[1]["input_ids"])
        with torch.no_grad():
            assert torch.equal(model(**both[0]).logits, again[1](**both[1]).logits)


def test_pictures_are_a_llava_16s(tmp_path, towers):
    """The same folder without the keys for videos is a LLaVA-1.6; both cut padding as the original does."""
    source = source_of(tmp_path, **TILES)
    folder = write(tmp_path / "x", source, towers.right)
    tokenizer, model, processor, _ = load(folder)
    _, other, _, _ = load(folder, overwrite_config=dict.fromkeys(NAMES))
    assert type(other).__name__ == "LlavaNextForConditionalGeneration"
    assert other.config.image_token_id == model.config.image_token_id
    for size in [*SIZES, (1, 1), (2000, 4), (200, 33)]:
        prompt, picture = "describe <image> it", [picture_of(size)]
        inputs = prepare(prompt, tokenizer, processor, model.config, picture)
        with torch.no_grad():
            assert torch.equal(model(**inputs).logits[..., :320], other(**inputs).logits[..., :320])
        stock = prepare(prompt, tokenizer, processor, source.config, picture)
        assert (inputs["input_ids"].shape != stock["input_ids"].shape) == (size == SIZES[1])


# ---------------------------------------------------------------------------------------------------------------
# What config.json says


def test_the_family_is_read_from_the_config(source):
    raw = made.flat(NEXT_VIDEO, source) | {"mm_vision_tower": "openai/clip-vit-large-patch14-336"}
    pictures = raw | dict.fromkeys(NAMES)
    assert family(raw) == NEXT_VIDEO and family(pictures) == "llava"
    for name in NAMES:
        assert family(pictures | {name: raw[name]}) == NEXT_VIDEO
    # Defaults of training that stand in the configs of models for pictures too.
    assert family(pictures | {"mm_spatial_pool_mode": "bilinear", "mm_newline_position": "grid"}) == "llava"
    assert family(raw | {"mm_vision_tower": "google/siglip-so400m-patch14-384"}) == "llava_onevision"


@pytest.mark.parametrize("missing", ["mm_spatial_pool_mode", "mm_spatial_pool_stride"])
def test_a_missing_key_is_said_and_filled_as_published(tmp_path, source, towers, missing, caplog):
    folder = write(tmp_path / "x", source, towers.other, **{missing: None})
    with caplog.at_level(logging.WARNING):
        loaded = load(folder)
    assert f"config.json has no {missing}: taking {2 if 'stride' in missing else 'average'!r}" in caplog.text
    assert same_logits(loaded, source)


def test_without_any_of_them_it_is_for_pictures(tmp_path, source, towers, clip, capsys):
    folder = write(tmp_path / "x", source, towers.right, **dict.fromkeys(NAMES))
    more = ["--query", "what?", "--temperature", "0", "--device", "cpu"]
    assert run.main(["--model-path", str(folder), "--video-file", str(clip), *more]) == 2
    assert "must name mm_spatial_pool_mode and mm_spatial_pool_stride" in capsys.readouterr().err
    # As the original's demo does it.
    pooling = json.dumps({"mm_spatial_pool_mode": "average", "mm_spatial_pool_stride": 2})
    asked = ["--model-path", str(folder), *more, "--overwrite-config", pooling]
    assert run.main([*asked, "--video-file", str(clip), "--max_new_tokens", "2", "--frames", "2"]) == 0
    assert same_logits(load(folder, overwrite_config={"mm_spatial_pool_mode": "average", NAMES[2]: 2}), source)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"mm_projector_type": "linear"}, "only mlp2x_gelu"),
        ({"mm_resampler_type": "perceiver"}, "knows only 'spatial_pool'"),
        ({"mm_spatial_pool_mode": "bilinear"}, "overwrite_config={'mm_spatial_pool_mode': 'average'}"),
        ({"mm_spatial_pool_out_channels": 64}, "knows only 32"),
        ({"mm_spatial_pool_stride": 5}, "from 1 to 4"),
        ({"mm_spatial_pool_stride": "2"}, "from 1 to 4"),
        ({"mm_pooling_position": "after"}, "knows only 'before'"),
        ({"mm_newline_position": "grid"}, "overwrite_config={'mm_newline_position': 'no_token'}"),
        ({"mm_newline_position": "one_token"}, "knows only 'no_token'"),
        ({"patchify_video_feature": True}, "knows only False"),
        ({"add_faster_video": True}, "knows only False"),
        ({"mm_patch_merge_type": "flat", "image_aspect_ratio": "pad"}, "only spatial_unpad with anyres"),
        ({"image_aspect_ratio": "anyres_max_9"}, "spatial_unpad with anyres"),
        ({"image_grid_pinpoints": None}, "no image_grid_pinpoints"),
        ({"mm_vision_select_feature": "cls"}, "patch, cls_patch"),
        ({"architectures": ["LlavaQwenForCausalLM"], "model_type": "llava_qwen"}, "LLaVA on Qwen"),
        ({"architectures": ["LlavaMixtralForCausalLM"]}, "LLaVA on Mixtral"),
    ],
)
def test_what_the_class_cannot_hold_is_refused(tmp_path, source, towers, change, message):
    with pytest.raises(ValueError) as error:
        load(write(tmp_path / "x", source, towers.right, **change))
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("change", [{"mm_newline_position": "grid"}, {"mm_spatial_pool_mode": "bilinear"}])
def test_the_remedy_it_names_works(tmp_path, source, towers, change):
    folder = write(tmp_path / "x", source, towers.right, **change)
    key = next(iter(change))
    remedy = {"mm_newline_position": "no_token", "mm_spatial_pool_mode": "average"}[key]
    assert same_logits(load(folder, overwrite_config={key: remedy}), source)


def test_longer_contexts_as_the_originals_demo_sets_them(tmp_path, source, towers):
    """Linear scaling of positions, which it turns on for 32 frames."""
    folder = write(tmp_path / "x", source, towers.right, weights="safetensors")
    longer = {"rope_scaling": {"factor": 2.0, "type": "linear"}, "max_sequence_length": 8192}
    loaded = load(folder, overwrite_config=longer)
    scaled = loaded[1].config.text_config.rope_parameters
    assert (scaled["rope_type"], scaled["factor"], loaded[3]) == ("linear", 2.0, 8192)
    assert not same_logits(loaded, source)


def test_prompts_are_tokenised_between_their_places(tmp_path, source, towers):
    """As the original does it, before and after saving; a second turn has no blank after </s>."""
    tokenizer, model, _, _ = load(write(tmp_path / "x", source, towers.right))
    text = "USER: <image>\nand <video>\nthe star</s>USER: it"
    chunked = tokenizer_image_token(text.replace("<video>", "<image>"), tokenizer)
    ids = token_ids(text, tokenizer)
    places = [i for i, token in enumerate(chunked) if token == IMAGE_TOKEN_INDEX]
    assert [ids[i] for i in places] == [model.config.image_token_id, model.config.video_token_id]
    assert [i for i in ids if i not in (320, 321)] == [i for i in chunked if i != IMAGE_TOKEN_INDEX]
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert tokens[places[1] + 1] == "▁" and not tokens[tokens.index("</s>") + 1].startswith("▁")
    tokenizer.save_pretrained(tmp_path / "saved")
    assert token_ids(text, load_stock_tokenizer(tmp_path / "saved")) == ids


def test_mistral_and_what_prompts_follow_from(tmp_path, towers):
    source = source_of(tmp_path, mistral=True)
    kind = {"architectures": ["LlavaMistralForCausalLM"], "model_type": "llava_mistral", "sliding_window": None}
    tokenizer, model, processor, _ = loaded = load(write(tmp_path / "x", source, towers.right, **kind))
    assert model.config.text_config.model_type == "mistral" and same_logits(loaded, source)
    assert build_prompt("what?", 0, 1, tokenizer, model.config) == "[INST] <video>\nwhat? [/INST]"
    config = next_video_config(made.flat(NEXT_VIDEO, source_of(tmp_path)), model.config.vision_config)
    assert usual_mode(tokenizer, config) == "vicuna_v1"
    assert usual_mode(SimpleNamespace(eos_token="<|im_end|>"), config) == "chatml_direct"
