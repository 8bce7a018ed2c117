"""load_pretrained_model on synthetic folders of every family and layout."""

from __future__ import annotations

import json
import logging
import shutil

import pytest
import torch
import transformers
from PIL import Image

import checkpoints
import next_checkpoints as made
from llava_next.mm_utils import process_images, process_video
from llava_next.model.builder import changed_config, family, load_pretrained_model
from llava_next.model.formats import pinpoints
from llava_next.processing import prepare
from next_checkpoints import NEXT_VIDEO, ONEVISION, VIDEO_LLAVA, load

LAYOUTS = [
    f"{one}/{layout}"
    for one in (ONEVISION, NEXT_VIDEO, VIDEO_LLAVA)
    for layout in ("stock", "hub", "bin", "safetensors")
]
PROMPT = "describe the picture <image> and <video> of it"


def inputs(folders, kind):
    """A picture and a video, given to every layout of a family alike."""
    tokenizer, model, processor, _ = load(folders[f"{kind}/stock"])
    picture = Image.linear_gradient("L").resize((90, 60)).convert("RGB")
    return prepare(PROMPT, tokenizer, processor, model.config, [picture], [process_video(made.frames(), processor, 3)])


@torch.no_grad()
def logits(model, given):
    return model(**given).logits[..., : checkpoints.VOCABULARY - 20]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_logits(folders, layout):
    kind = layout.split("/")[0]
    given = inputs(folders, kind)
    _, expected, _, _ = load(folders[f"{kind}/stock"])
    _, model, processor, context = load(folders[layout])
    assert isinstance(model, made.STOCK[kind]) and type(model).__name__ == made.STOCK[kind].__name__
    assert model.config.MoB_config == {} and type(model.config.MoB_config) is dict
    assert model.dtype == torch.float32 and context == 4096 and not model.training
    assert model.config.image_token_id == expected.config.image_token_id
    assert model.config.video_token_id == expected.config.video_token_id
    assert torch.equal(logits(model, given), logits(expected, given))


@pytest.mark.parametrize("layout", [one for one in LAYOUTS if not one.endswith("safetensors")])
def test_save_and_reload(folders, layout, tmp_path):
    """What we save is a plain transformers folder: our loader and the stock class both read it."""
    kind = layout.split("/")[0]
    given = inputs(folders, kind)
    tokenizer, model, processor, _ = load(folders[layout])
    before = logits(model, given)
    model.config.MoB_config.update({"K": 2})
    for part in (model, tokenizer, processor):
        part.save_pretrained(tmp_path)
    stock, info = made.STOCK[kind].from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [made.STOCK[kind].__name__]
    assert torch.equal(logits(stock, given), before)
    tokens, again, reread, _ = load(tmp_path)
    assert again.config.MoB_config == {"K": 2}
    again.config.MoB_config = {}
    assert torch.equal(logits(again, given), before)
    assert tokens(PROMPT)["input_ids"] == tokenizer(PROMPT)["input_ids"]
    picture = Image.effect_noise((50, 70), 90).convert("RGB")
    for old, new in zip(*(process_images([picture], one, model.config) for one in (processor, reread)), strict=True):
        assert torch.equal(old, new)


def test_mob_config_is_honoured(folders):
    given = inputs(folders, ONEVISION)
    _, model, _, _ = load(folders[f"{ONEVISION}/bin"], MoB_config={"K": 5, "l_idx": 1})
    assert model.config.MoB_config == {"K": 5, "l_idx": 1}
    model.pruning.record = True
    pruned = logits(model, given)
    assert (model.pruning.records[-1].K, model.pruning.records[-1].layer) == (5, 1)
    model.config.MoB_config.clear()
    assert not torch.equal(logits(model, given), pruned)


class TestOneVision:
    def source(self, tmp_path, **more):
        return made.source_of(ONEVISION, tmp_path, **more)

    def folder(self, folders, tmp_path, source=None, **more):
        source = source or self.source(tmp_path)
        return made.original_folder(tmp_path / "x", ONEVISION, source, folders[f"{ONEVISION}/tower"], **more)

    def test_what_the_original_deletes_after_loading_may_be_in_the_files(self, folders, tmp_path):
        """SigLIP's last layer and its pooling head: no feature depends on them."""
        top = "model.vision_tower.vision_tower.vision_model"
        extra = {
            f"{top}.encoder.layers.2.layer_norm1.weight": torch.ones(32),
            f"{top}.head.probe": torch.ones(1, 1, 32),
        }
        _, model, _, _ = load(self.folder(folders, tmp_path, extra=extra))
        assert len(model.model.vision_tower.encoder.layers) == 2

    def test_the_last_norm_of_the_tower_may_be_missing_and_changes_nothing(self, folders, tmp_path):
        source, given = self.source(tmp_path), inputs(folders, ONEVISION)
        expected = logits(source, given)
        with torch.no_grad():
            source.model.vision_tower.post_layernorm.weight.fill_(7)
        assert torch.equal(logits(source, given), expected)
        state = made.original_weights(ONEVISION, source)
        folder = self.folder(folders, tmp_path, source, weights="safetensors")
        made.save_file({n: v for n, v in state.items() if "post_layernorm" not in n}, folder / "model.safetensors")
        assert torch.equal(logits(load(folder)[1], given), expected)

    def test_a_tied_head_is_not_in_the_files(self, folders, tmp_path):
        source = self.source(tmp_path, tied=True)
        _, model, _, _ = load(self.folder(folders, tmp_path, source))
        given = inputs(folders, ONEVISION)
        assert torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)
        assert torch.equal(logits(model, given), logits(source, given))

    def test_a_vocabulary_without_room_grows(self, folders, tmp_path):
        first = made.places_of(folders[f"{ONEVISION}/bin"])[0]
        source = self.source(tmp_path, vocabulary=first + 2)
        folder = self.folder(folders, tmp_path, source, weights="safetensors", vocab_size=first)
        state = made.original_weights(ONEVISION, source)
        rows = {
            n: v[:first].clone() if n in ("model.embed_tokens.weight", "lm_head.weight") else v
            for n, v in state.items()
        }
        made.save_file(rows, folder / "model.safetensors", metadata={"format": "pt"})
        _, model, _, _ = load(folder)
        given = inputs(folders, ONEVISION)
        assert torch.equal(logits(model, given), logits(source, given))
        assert model.lm_head.weight[first:].abs().max() == 0

    def test_resolutions(self):
        assert pinpoints([[384, 768], [768, 384]], 384) == [[768, 384], [384, 768]]
        assert pinpoints("[[384, 768]]", 384) == [[768, 384]]
        assert pinpoints("(1x1),...,(2x3)", 10) == [[10, 10], [20, 10], [30, 10], [10, 20], [20, 20], [30, 20]]
        with pytest.raises(ValueError, match="image_grid_pinpoints is missing"):
            pinpoints(None, 384)

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"mm_projector_type": "linear"}, "only mlp2x_gelu"),
            ({"mm_newline_position": "grid"}, "overwrite_config={'mm_newline_position': 'one_token'}"),
            ({"mm_spatial_pool_mode": "average"}, "knows only 'bilinear'"),
            ({"mm_patch_merge_type": "flat"}, "only spatial_unpad"),
            ({"image_aspect_ratio": "crop_split"}, "only anyres"),
            ({"architectures": ["LlavaGemmaForCausalLM"]}, "only Qwen"),
        ],
    )
    def test_what_cannot_be_loaded_is_said(self, folders, tmp_path, change, message):
        with pytest.raises(ValueError) as error:
            load(self.folder(folders, tmp_path, **change))
        assert message in str(error.value) and "\n" not in str(error.value)

    def test_the_remedy_it_names_works(self, folders, tmp_path):
        folder = self.folder(folders, tmp_path, mm_newline_position="grid")
        load(folder, overwrite_config={"mm_newline_position": "one_token"})


class TestVideoLlava:
    @pytest.mark.parametrize("weights", ["bin", "safetensors"])
    def test_attention_over_frames_is_refused(self, folders, tmp_path, weights):
        layer = "model.video_tower.video_tower.encoder.layers.0"
        extra = {
            f"{layer}.temporal_embedding": torch.ones(1, 8, 32),
            f"{layer}.temporal_attn.q_proj.bias": torch.ones(32),
        }
        tower = folders[f"{VIDEO_LLAVA}/tower"]
        source = made.source_of(VIDEO_LLAVA, tmp_path)
        folder = made.original_folder(tmp_path / "x", VIDEO_LLAVA, source, tower, weights=weights, extra=extra)
        with pytest.raises(ValueError, match=r"temporal_[\w.]+ and 1 more.*Video-LLaVA-7B-hf"):
            load(folder)
        if weights == "bin":  # without an index
            (folder / "pytorch_model.bin.index.json").unlink()
            with pytest.raises(ValueError, match="attention over frames"):
                load(folder)

    def test_pictures_are_squared_with_the_mean_colour(self, folders):
        _, model, processor, _ = load(folders[f"{VIDEO_LLAVA}/bin"])
        pixels = process_images([Image.new("RGB", (80, 20), "white")], processor, model.config)
        assert pixels.shape == (1, 3, 28, 28) and pixels[0, :, 0, 0].abs().max() < 0.02

    def test_another_shape_is_an_error(self, folders):
        with pytest.raises(ValueError, match=r"of another shape: .*mlp\.\w+_proj\.weight"):
            load(folders[f"{VIDEO_LLAVA}/bin"], overwrite_config={"intermediate_size": 80})
        with pytest.raises(ValueError, match="of another shape"):
            load(folders[f"{NEXT_VIDEO}/stock"], overwrite_config={"text_config": {"intermediate_size": 80}})


def test_towers_known_without_a_download():
    from llava_next.model.formats import _languagebind, _siglip

    siglip, clip = _siglip("google/siglip-so400m-patch14-384"), _languagebind("LanguageBind/LanguageBind_Image")
    assert (siglip.num_hidden_layers, siglip.image_size, siglip.vision_use_head) == (26, 384, False)
    assert (clip.num_hidden_layers, clip.image_size, clip.hidden_act) == (24, 224, "gelu")


@pytest.mark.parametrize("kind", [ONEVISION, VIDEO_LLAVA])
def test_pickles_run_no_code(folders, tmp_path, kind):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "touched"), "w"))

    shutil.copytree(folders[f"{kind}/bin"], tmp_path / "evil")
    torch.save({"model.norm.weight": Evil()}, tmp_path / "evil" / "pytorch_model-00001-of-00002.bin")
    with pytest.raises(Exception, match="(?i)weights.only|unsupported|unpickl"):
        load(tmp_path / "evil")
    if kind == VIDEO_LLAVA:  # its weights' names are read first
        (tmp_path / "evil" / "pytorch_model.bin.index.json").unlink()
        with pytest.raises(Exception, match="(?i)weights.only|unsupported|unpickl"):
            load(tmp_path / "evil")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("layout", [f"{ONEVISION}/safetensors", f"{VIDEO_LLAVA}/safetensors", f"{NEXT_VIDEO}/stock"])
def test_missing_and_unknown_weights_are_errors(folders, tmp_path, layout):
    shutil.copytree(folders[layout], tmp_path / "x")
    file = tmp_path / "x" / "model.safetensors"
    state = made.stored(file)
    gone = next(name for name in state if "layers.1.mlp.up_proj" in name)
    made.save_file({n: v for n, v in state.items() if n != gone}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing: model\.language_model\.layers\.1\.mlp\.up_proj\.weight"):
        load(tmp_path / "x")
    if "safetensors" in layout:
        made.save_file(state | {"model.mm_projector.4.weight": torch.ones(2)}, file, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=r"left over: model\.mm_projector\.4\.weight"):
            load(tmp_path / "x")
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(ValueError, match="cannot be loaded"):
        load(tmp_path / "x")


class TestOptions:
    def test_dtypes(self, folders):
        folder = folders[f"{NEXT_VIDEO}/stock"]
        for given, expected in (
            ("float16", torch.float32),
            ("bfloat16", torch.bfloat16),
            (torch.float64, torch.float64),
        ):
            assert load(folder, torch_dtype=given)[1].dtype == expected

    def test_flash_attention_falls_back_with_a_note(self, folders, caplog):
        with caplog.at_level(logging.WARNING):
            _, model, _, _ = load(folders[f"{VIDEO_LLAVA}/stock"], attn_implementation="flash_attention_2")
        if not transformers.utils.is_flash_attn_2_available():
            assert "using SDPA" in caplog.text and model.config._attn_implementation == "sdpa"
        assert (
            load(folders[f"{VIDEO_LLAVA}/stock"], attn_implementation="eager")[1].config._attn_implementation == "eager"
        )

    def test_multimodal_and_positional_arguments(self, folders):
        folder = str(folders[f"{ONEVISION}/stock"])
        assert len(load_pretrained_model(folder, None, "yi", False, False, "auto", device="cpu", multimodal=True)) == 4

    def test_overwrite_config(self, folders):
        _, model, _, context = load(
            folders[f"{ONEVISION}/stock"],
            overwrite_config={"vision_aspect_ratio": "anyres_max_2", "text_config": {"max_position_embeddings": 99}},
        )
        assert (model.config.vision_aspect_ratio, context) == ("anyres_max_2", 99)
        assert model.config.text_config.hidden_size == 48
        _, model, _, context = load(folders[f"{ONEVISION}/bin"], overwrite_config={"max_position_embeddings": 77})
        assert model.config.text_config.max_position_embeddings == context == 77

    def test_customized_config(self, folders, tmp_path):
        folder = folders[f"{NEXT_VIDEO}/stock"]
        custom = transformers.AutoConfig.from_pretrained(folder)
        custom.MoB_config = {"K": 3}
        assert load(folder, customized_config=custom)[1].config.MoB_config == {"K": 3}
        assert load(folder, customized_config=custom.to_dict())[1].config.MoB_config == {"K": 3}
        custom.save_pretrained(tmp_path)
        for place in (tmp_path, tmp_path / "config.json"):
            assert load(folder, customized_config=str(place))[1].config.MoB_config == {"K": 3}
        with pytest.raises(ValueError, match="has no config.json"):
            load(folder, customized_config="/nowhere")

    def test_context_length(self, folders):
        more = {"max_sequence_length": 55}
        assert load(folders[f"{VIDEO_LLAVA}/bin"], overwrite_config=more)[3] == 55
        assert load(folders[f"{VIDEO_LLAVA}/stock"], overwrite_config=more)[3] == 55

    def test_merging_is_deep_and_leaves_the_first_alone(self):
        raw = {"a": {"b": 1, "c": 2}, "d": 3}
        assert changed_config(raw, None, {"a": {"b": 9}, "e": 4}) == {"a": {"b": 9, "c": 2}, "d": 3, "e": 4}
        assert raw == {"a": {"b": 1, "c": 2}, "d": 3}

    @pytest.mark.parametrize(
        "layout, kwargs, message",
        [
            (f"{ONEVISION}/stock", {"device": "tpu"}, "device 'tpu' is not there"),
            (f"{ONEVISION}/stock", {"MoB_config": {"Kp_rato": 1}}, "did you mean 'Kp_ratio'"),
        ],
    )
    def test_wrong_options(self, folders, layout, kwargs, message):
        with pytest.raises(ValueError, match=message):
            load(folders[layout], **kwargs)

    def test_adapters_are_refused(self, folders):
        with pytest.raises(ValueError, match="model_base='b'"):
            load_pretrained_model(str(folders[f"{ONEVISION}/stock"]), "b", "x", device="cpu")


class TestLlava:
    """LLaVA-1.5 through the loader of package llava, in both layouts."""

    @pytest.fixture(scope="class")
    def llava(self, tmp_path_factory):
        root, source = tmp_path_factory.mktemp("llava"), checkpoints.model()
        tower = checkpoints.tower_folder(root / "tower", source)
        return {
            "original": checkpoints.original_folder(root / "llava-v1.5", tower, source),
            "stock": checkpoints.stock_folder(root / "llava-hf", source),
        }

    @pytest.mark.parametrize("layout", ["original", "stock"])
    def test_loads(self, llava, layout):
        _, model, _, context = load(llava[layout])
        assert isinstance(model, transformers.LlavaForConditionalGeneration) and context == 256
        assert model.config.MoB_config == {}

    @pytest.mark.parametrize("layout", ["original", "stock"])
    def test_overwrite_config(self, llava, layout):
        before = sorted(llava[layout].iterdir())
        _, model, _, _ = load(llava[layout], overwrite_config={"MoB_config": {"K": 3}})
        assert model.config.MoB_config == {"K": 3}
        assert model.config._name_or_path == str(llava[layout]) and sorted(llava[layout].iterdir()) == before

    def test_the_same_name_says_nothing(self, llava, folders):
        """Routing is by config.json."""
        path = str(folders[f"{VIDEO_LLAVA}/stock"])
        model = load_pretrained_model(path, None, "llava-v1.6-vicuna-7b", device="cpu", attn_implementation=None)[1]
        assert isinstance(model, transformers.VideoLlavaForConditionalGeneration)


def test_families():
    assert family({"mm_vision_tower": "google/siglip-so400m-patch14-384", "model_type": "llava_qwen"}) == ONEVISION
    assert family({"mm_vision_tower": "openai/clip-vit-large-patch14-336", "model_type": "llava"}) == "llava"
    assert family({"mm_projector_type": "mlp2x_gelu", "mm_video_tower": "x", "mm_image_tower": "y"}) == VIDEO_LLAVA
    assert family({"model_type": "llava"}) == "llava" and family({"model_type": NEXT_VIDEO}) == NEXT_VIDEO
    with pytest.raises(ValueError, match="type 'bert': this loader reads .*llava_onevision"):
        family({"model_type": "bert"})
