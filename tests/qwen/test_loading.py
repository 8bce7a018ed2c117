"""MoB.from_pretrained on synthetic folders: both key layouts, saving, the release README's snippet, refusals."""

from __future__ import annotations

import copy
import json
import pickle
import warnings

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer

import qwen_checkpoints as checkpoints
from Qwen2VL_MoB import MoB
from Qwen2VL_MoB.modeling_qwen2_vl_self import FAMILIES

LAYOUTS = [(family, layout) for family in checkpoints.FAMILIES for layout in ("hub", "saved")]
README = {"image_token_start_index": 1, "image_token_length": 256, "K": 64, "Kp_ratio": 0.5, "k_ratio": 0.125}


def inputs(model, tokenizer, picture):
    return model.chat_inputs(tokenizer, [turn(model, picture)])


def turn(model, picture, query="describe the picture"):
    from Qwen2VL_MoB import Turn

    return Turn(query, "", model.processing().pictures(picture))


@torch.no_grad()
def logits(model, given):
    return model(**given).logits


@pytest.mark.parametrize("family, layout", LAYOUTS)
def test_every_layout_gives_the_source_model(folders, sources, family, layout, tokenizer, picture):
    model, info = MoB.from_pretrained(folders[family, layout], output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert isinstance(model, MoB) and isinstance(model, checkpoints.CLASSES[family])
    assert type(model).__name__ == checkpoints.CLASSES[family].__name__
    assert type(model.config.MoB_config) is dict and "K" not in model.config.MoB_config
    for name, value in sources[family].state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    given = inputs(model.eval(), tokenizer, picture)
    assert torch.equal(logits(model, given), logits(sources[family], given))


@pytest.mark.parametrize("family", checkpoints.FAMILIES)
def test_save_and_reload(folders, family, tmp_path, tokenizer, picture):
    """What we save is a plain folder of transformers, whose Auto classes read it."""
    model = MoB.from_pretrained(folders[family, "hub"], MoB_config={"K": 5, "Kp_ratio": 0.4}).eval()
    given = inputs(model, tokenizer, picture)
    pruned = logits(model, given)
    model.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    assert raw["architectures"] == [checkpoints.CLASSES[family].__name__] and "auto_map" not in raw
    assert raw["MoB_config"] == model.config.MoB_config and raw["MoB_config"]["K"] == 5
    stock, info = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert type(stock) is checkpoints.CLASSES[family]
    assert not info["missing_keys"] and not info["unexpected_keys"]
    again = MoB.from_pretrained(tmp_path).eval()
    assert again.config.MoB_config == model.config.MoB_config
    assert torch.equal(logits(again, given), pruned)
    again.config.MoB_config = {}
    assert torch.equal(logits(again, given), logits(stock.eval(), given))
    assert not torch.equal(logits(again, given), pruned)


@pytest.mark.parametrize("more", [{}, {"alpha": 0.5, "distance_metric": "cosine"}], ids=["short", "whole"])
def test_the_snippet_of_the_release(folders, capsys, picture, more):
    """As the release README has it; it also gives alpha beside an equal Kp_ratio, and a span that is wrong."""
    from Qwen2VL_MoB.modeling_qwen2_vl_self import MoB

    model_id = str(folders["qwen2_vl", "hub"])
    tokenizer = AutoTokenizer.from_pretrained(model_id)
    config = AutoConfig.from_pretrained(model_id)
    config.MoB_config = {**README, "K": 4, **more}
    # The release's README has the flag; MoB takes it and runs no remote code (the next test).
    model = MoB.from_pretrained(model_id, config=config, trust_remote_code=True, torch_dtype="auto").eval()
    model.pruning.record = True
    image_tensor = torch.rand(3, 60, 90, generator=torch.Generator().manual_seed(0))
    query = "What safety hazards does this blueprint reveal?"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        first = model.chat(tokenizer, query=query, image=image_tensor, max_new_tokens=4)
        result = model.chat(tokenizer, query=query, image=image_tensor, max_new_tokens=4)
        print(result)
    assert first == result and capsys.readouterr().out.strip() == result and result
    said = [str(one.message) for one in caught if "MoB_config" in str(one.message)]
    assert len(said) == 1 and "starts at token 1 and has 256" in said[0] and "starts at 15 and has 6" in said[0]
    records = model.pruning.records
    assert [(one.N, one.K, one.K_p, one.layer) for one in records] == [(6, 4, 2, 2)] * 2


def test_no_remote_code_runs(folders, tmp_path):
    """A folder that names code of its own is loaded without it, even where the flag allows it."""
    for file in folders["qwen2_vl", "hub"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    values = json.loads((tmp_path / "config.json").read_text())
    values["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForImageTextToText": "evil.Model"}
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'touched')!r}, 'w')")
    assert isinstance(
        MoB.from_pretrained(tmp_path, trust_remote_code=True), transformers.Qwen2VLForConditionalGeneration
    )
    assert not (tmp_path / "touched").exists()


def test_qwen3_prunes_after_deepstack(folders, tokenizer, picture):
    folder = folders["qwen3_vl", "hub"]
    config = AutoConfig.from_pretrained(folder)
    config.MoB_config = {**README, "K": 0.5}
    model = MoB.from_pretrained(folder, config=config).eval()
    assert "l_idx" not in model.config.MoB_config
    model.pruning.record = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.chat(tokenizer, "describe", image=picture, max_new_tokens=2)
    assert model.pruning.records[0].layer == 3 and model.pruning.records[0].K == 3
    for early in (1, 2):
        with pytest.raises(ValueError, match="layers 3 to 4"):
            MoB.from_pretrained(folder, config=copy.deepcopy(config), MoB_config={"K": 4, "l_idx": early}).chat(
                tokenizer, "describe", image=picture
            )
        config.MoB_config = {"K": 4, "layer": early}
        with pytest.raises(ValueError, match="layers 3 to 4"):
            MoB(config)


@pytest.mark.parametrize("family", checkpoints.FAMILIES)
def test_from_a_config(family, folders):
    config = AutoConfig.from_pretrained(folders[family, "hub"])
    config.MoB_config = {"K": 3}
    model = MoB(config)
    assert type(model) is FAMILIES[family] and isinstance(model, MoB) and model.config.MoB_config["K"] == 3
    assert type(pickle.loads(pickle.dumps(model))) is FAMILIES[family]
    assert type(copy.deepcopy(model)) is FAMILIES[family]
    assert isinstance(FAMILIES[family].from_pretrained(folders[family, "hub"], torch_dtype="auto"), MoB)


def test_the_model_with_experts(tokenizer, picture):
    values = checkpoints.flat_config("qwen3_vl", tokenizer)
    text = values["text_config"] | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    text |= {"decoder_sparse_step": 1, "mlp_only_layers": []}
    config = transformers.Qwen3VLMoeConfig(
        text_config=text,
        vision_config={k: v for k, v in values["vision_config"].items() if k != "model_type"},
        **{
            key: values[key]
            for key in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
        },
    )
    config.MoB_config = {"K": 4}
    torch.manual_seed(0)
    model = MoB(config).eval()
    model.pruning.record = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert isinstance(model.chat(tokenizer, "describe", image=picture, max_new_tokens=3, max_pixels=40_000), str)
    assert model.pruning.records[0].K == 4


def test_other_models_and_wrong_settings_are_refused(folders, tmp_path):
    with pytest.raises(ValueError, match="no Qwen-VL: MoB reads qwen2_vl"):
        MoB(transformers.LlavaConfig())
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(ValueError, match="type 'llava'"):
        MoB.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="did you mean 'Kp_ratio'"):
        MoB.from_pretrained(folders["qwen2_vl", "hub"], MoB_config={"K": 4, "Kp_rato": 0.5})
    config = AutoConfig.from_pretrained(folders["qwen2_vl", "hub"])
    config.MoB_config = "K=4"
    with pytest.raises(ValueError, match="give a dict"):
        MoB(config)


def test_dtypes(folders):
    for given in ({"torch_dtype": torch.bfloat16}, {"dtype": "bfloat16"}, {"dtype": "bfloat16", "torch_dtype": "auto"}):
        assert MoB.from_pretrained(folders["qwen2_vl", "hub"], **given).dtype == torch.bfloat16
