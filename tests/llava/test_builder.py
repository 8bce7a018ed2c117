"""load_pretrained_model on synthetic folders in both layouts."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from PIL import Image

import checkpoints
from llava.constants import IMAGE_TOKEN_INDEX
from llava.eval.prompts import build_prompt, encode
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from llava.model.formats import KEYS

PROMPT = "A chat between a curious user. USER: <image>\ndescribe the picture ASSISTANT:"


@pytest.fixture(scope="module")
def source():
    return checkpoints.model()


@pytest.fixture(scope="module")
def tower(tmp_path_factory, source):
    return checkpoints.tower_folder(tmp_path_factory.mktemp("tower"), source)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, source, tower):
    """One folder for each layout, all with the same weights."""
    root = tmp_path_factory.mktemp("models")
    other = checkpoints.tower_folder(tmp_path_factory.mktemp("other"), checkpoints.model(seed=9))
    return {
        "bin": checkpoints.original_folder(root / "llava-v1.5-bin", tower, source),
        "safetensors": checkpoints.original_folder(
            root / "llava-v1.5-st", other, source, weights="safetensors", with_tower=True
        ),
        "stock": checkpoints.stock_folder(root / "llava-1.5-hf", source),
    }


def load(folder, **kwargs):
    return load_pretrained_model(str(folder), None, "llava-v1.5-mob", device="cpu", **kwargs)


def logits(model, tokenizer, image_processor):
    """Logits of a fixed prompt and picture, given to the model the original way."""
    picture = Image.linear_gradient("L").resize((40, 40)).convert("RGB")
    ids = tokenizer_image_token(PROMPT, tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt")[None]
    pixels = process_images([picture], image_processor, model.config)
    with torch.no_grad():
        return model(**model.expand_images(ids, None, pixels, [picture.size])).logits[..., : checkpoints.VOCABULARY]


@pytest.mark.parametrize("layout", ["bin", "safetensors", "stock"])
def test_every_layout_gives_the_source_model(folders, source, layout):
    tokenizer, model, image_processor, context = load(folders[layout])
    assert isinstance(model, transformers.LlavaForConditionalGeneration)
    assert model.config.MoB_config == {} and type(model.config.MoB_config) is dict
    assert context == 256  # max_position_embeddings of the tiny model is below 2048
    assert model.dtype == torch.float32
    ours = model.state_dict()
    for name, value in source.state_dict().items():
        assert torch.equal(ours[name][: len(value)], value), name
    _, stock, stock_processor, _ = load(folders["stock"])
    assert torch.allclose(
        logits(model, tokenizer, image_processor), logits(stock, tokenizer, stock_processor), atol=1e-5
    )


def test_the_original_pads_pictures_to_squares(folders):
    wide = Image.new("RGB", (80, 20), "white")
    _, model, image_processor, _ = load(folders["bin"])
    padded = process_images([wide], image_processor, model.config)
    assert padded.shape == (1, 3, checkpoints.IMAGE_SIZE, checkpoints.IMAGE_SIZE)
    assert padded[0, :, 0, 0].abs().max() < 0.02  # the mean colour of the processor, after normalisation


@pytest.mark.parametrize("layout", ["bin", "stock"])
def test_generate_the_original_way_returns_new_tokens_only(folders, layout):
    tokenizer, model, image_processor, _ = load(folders[layout])
    ids = tokenizer_image_token(PROMPT, tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt")[None]
    pixels = process_images([Image.new("RGB", (30, 30), "red")], image_processor, model.config)
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    new = model.generate(ids, images=pixels, image_sizes=[(30, 30)], **options)
    assert new.shape == (1, 3)
    expanded = model.expand_images(ids, None, pixels)
    whole = model.generate(**expanded, **options)
    assert torch.equal(whole[:, expanded["input_ids"].shape[1] :], new)


def test_text_only_the_original_way(folders):
    tokenizer, model, _, _ = load(folders["bin"])
    ids = tokenizer("describe the picture", return_tensors="pt")["input_ids"]
    assert model.generate(ids, images=None, max_new_tokens=2, min_new_tokens=2, do_sample=False).shape == (1, 2)


def test_images_and_placeholders_must_agree(folders):
    tokenizer, model, _, _ = load(folders["stock"])
    ids = tokenizer("no picture here", return_tensors="pt")["input_ids"]
    with pytest.raises(ValueError, match="put one <image> into the prompt"):
        model.generate(ids, images=torch.zeros(1, 3, 28, 28), max_new_tokens=1)


def test_blanks_are_where_the_original_tokenizer_puts_them(folders):
    """One before a text that begins a prompt or follows a picture; with legacy false, none after other marks."""
    tokenizer, _, _, _ = load(folders["bin"])
    assert json.loads((folders["bin"] / "tokenizer_config.json").read_text())["legacy"] is False
    ids = tokenizer_image_token("USER<image>\nthe</s>USER", tokenizer)
    tokens = ["<image>" if i == IMAGE_TOKEN_INDEX else tokenizer.convert_ids_to_tokens(i) for i in ids]
    after = tokens[tokens.index("<image>") + 1 :]
    assert tokens[0] == "<s>" and tokens[1].startswith("▁") and after[:2] == ["▁", "<0x0A>"]
    assert not after[after.index("</s>") + 1].startswith("▁")


@pytest.mark.parametrize("layout", ["bin", "safetensors", "stock"])
def test_save_and_reload(folders, layout, tmp_path):
    """What we save is a plain transformers folder: our loader and the stock class both read it."""
    tokenizer, model, image_processor, _ = load(folders[layout])
    before = logits(model, tokenizer, image_processor)
    model.config.MoB_config.update({"K": 2})
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    image_processor.save_pretrained(tmp_path)
    stock, info = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["LlavaForConditionalGeneration"]
    _, again, _, _ = load(tmp_path)
    assert again.config.MoB_config == {"K": 2}
    again.config.MoB_config = {}
    assert torch.equal(logits(again, tokenizer, image_processor), before)
    for name, value in model.state_dict().items():
        assert torch.equal(stock.state_dict()[name], value), name


def test_mob_config_is_honoured(folders):
    tokenizer, model, image_processor, _ = load(folders["bin"])
    plain = logits(model, tokenizer, image_processor)
    model.config.MoB_config.update({"l_idx": 1, "K": 2, "Kp_ratio": 0.5, "k_ratio": 0.5})
    model.pruning.record = True
    assert not torch.equal(logits(model, tokenizer, image_processor), plain)
    record = model.pruning.records[-1]
    assert (record.N, record.K, record.K_p, record.k, record.layer) == (4, 2, 1, 1, 1)
    model.config.MoB_config.clear()
    assert torch.equal(logits(model, tokenizer, image_processor), plain)


def test_mob_config_at_loading(folders):
    _, model, _, _ = load(folders["stock"], MoB_config={"K": 3})
    assert model.config.MoB_config == {"K": 3}
    with pytest.raises(ValueError, match="did you mean 'Kp_ratio'"):
        load(folders["stock"], MoB_config={"Kp_rato": 0.5})


def test_pickles_run_no_code(folders, tmp_path, source, tower):
    """A .bin that carries more than tensors is refused."""

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "touched"), "w"))

    folder = checkpoints.original_folder(tmp_path / "llava-evil", tower, source)
    shard = next(folder.glob("*00001-of-00002.bin"))
    torch.save({"model.embed_tokens.weight": Evil()}, shard)
    with pytest.raises(Exception, match="(?i)weights.only|unsupported|unpickl"):
        load(folder)
    assert not (tmp_path / "touched").exists()


def test_a_missing_weight_is_an_error(tmp_path, source, tower):
    folder = checkpoints.original_folder(tmp_path / "llava-broken", tower, source, weights="safetensors")
    state = checkpoints.original_weights(source, tower=False)
    del state["lm_head.weight"]
    state["model.mm_projector.4.weight"] = torch.zeros(2)
    checkpoints.save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="missing: lm_head.weight; left over: model.mm_projector.4.weight"):
        load(folder)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"mm_projector_type": "linear"}, "only mlp2x_gelu"),
        ({"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad"}, "no image_grid_pinpoints"),
        ({"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial"}, "reads LLaVA-1.5"),
        ({"architectures": ["LlavaMptForCausalLM"]}, "MPT"),
        ({"mm_vision_select_feature": "cls"}, "patch, cls_patch"),
        ({"mm_vision_tower": "/nowhere"}, "not a folder"),
    ],
)
def test_what_cannot_be_loaded_is_said(tmp_path, source, tower, change, message):
    folder = checkpoints.original_folder(tmp_path / "llava-x", tower, source, **change)
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_a_tokenizer_that_is_not_llamas(tmp_path, source, tower):
    folder = checkpoints.original_folder(tmp_path / "llava-x", tower, source)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(ValueError, match="type 'PreTrainedTokenizerFast': only Llama's"):
        load(folder)


def test_a_tower_with_a_hole_is_named(tmp_path, source, tower):
    """A checkpoint with its own tower is not filled up from another."""
    folder = checkpoints.original_folder(tmp_path / "x", tower, source, weights="safetensors", with_tower=True)
    state = checkpoints.original_weights(source, tower=True)
    gone = next(name for name in state if "encoder.layers.1.mlp.fc1.bias" in name)
    checkpoints.save_file({k: v for k, v in state.items() if k != gone}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing: model\.vision_tower\.encoder\.layers\.1\.mlp\.fc1\.bias"):
        load(folder)


def test_a_chat_template_beside_the_tokenizer(folders, tmp_path):
    """As llava-hf folders of before transformers 5 have it."""
    for file in folders["stock"].iterdir():
        if file.name != "chat_template.jinja":
            (tmp_path / file.name).symlink_to(file)
    assert load(tmp_path)[0].chat_template is None
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": checkpoints.TEMPLATE}))
    assert load(tmp_path)[0].chat_template == load(folders["stock"])[0].chat_template == checkpoints.TEMPLATE


FOR_TEXT = (  # Mistral-Instruct's begins like this, and ChatML is alike: the text is joined to strings
    "{% for m in messages %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% endfor %}",
    "{% for m in messages %}<|im_start|>{{ m['role'] }} {{ m['content'] }}<|im_end|>{% endfor %}",
    "{% if messages[0]['content'] is not string %}{{ raise_exception('text only') }}{% endif %}",
)


@pytest.mark.parametrize("template", [*FOR_TEXT, checkpoints.TEMPLATE])
def test_a_chat_template_of_the_language_model_is_left_alone(tmp_path, source, tower, template):
    """It comes with the files of the original layout, and knows no pictures: prompts are made as without it."""
    plain = load(checkpoints.original_folder(tmp_path / "llava-v1.5-plain", tower, source))
    folder = checkpoints.original_folder(tmp_path / "llava-v1.5-chat", tower, source)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}))
    tokenizer, model, _, _ = load(folder)
    assert (tokenizer.chat_template is None) == (template in FOR_TEXT)
    if template in FOR_TEXT:
        name, config = "llava-v1.5-7b", model.config
        asked = [build_prompt("what is this?", 1, one, config, name, None) for one in (plain[0], tokenizer)]
        assert asked[0] == asked[1] and encode(asked[0], plain[0]).tolist() == encode(asked[1], tokenizer).tolist()


def test_prompts_begin_with_bos_where_the_files_do_not_say(tmp_path, source, tower):
    """transformers 4 put it there, and old bases were tuned with it; 5 would not."""
    folder = checkpoints.original_folder(tmp_path / "llava-v1.5-old", tower, source)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    for said, first in ((None, 1), (True, 1), (False, None)):
        others = {key: value for key, value in settings.items() if key != "add_bos_token"}
        others |= {} if said is None else {"add_bos_token": said}
        (folder / "tokenizer_config.json").write_text(json.dumps(others))
        ids = load(folder)[0]("describe")["input_ids"]
        assert (ids[0] == 1) == (first == 1), said


def test_wrong_folders(tmp_path):
    with pytest.raises(ValueError, match="has no config.json"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="type 'bert'"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        load(tmp_path)


def test_a_whole_model_has_no_base(folders):
    """Not even where a projector lies beside it, as in the published folders."""
    for layout in ("bin", "safetensors"):
        with pytest.raises(ValueError, match="holds a whole model: leave model_base out"):
            load_pretrained_model(str(folders[layout]), str(folders["bin"]), "llava-v1.5-mob", device="cpu")


def test_the_key_mapping_is_not_written_into_saved_models(folders):
    """transformers would otherwise undo KEYS on saving, and write a folder that nothing can load."""
    assert KEYS
    _, model, _, _ = load(folders["bin"])
    assert not hasattr(model, "_weight_conversions")
