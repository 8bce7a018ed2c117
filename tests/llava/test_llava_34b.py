"""LLaVA-1.6-34b: a Llama with Yi's tokenizer, which writes no BOS and ends turns with <|im_end|>, in both layouts."""

from __future__ import annotations

import json

import pytest
import sentencepiece
import torch
import transformers
from PIL import Image

import checkpoints
from llava.constants import IMAGE_TOKEN_INDEX
from llava.eval import run_llava
from llava.eval.prompts import build_prompt, encode
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model

END = checkpoints.CHATML_IDS["<|im_end|>"]
NAME = "llava-v1.6-34b"
CHAT = (  # as llava-hf/llava-v1.6-34b-hf: parts, no system turn
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n'}}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{'<image>\n'}}{% else %}{{c['text']}}{% endif %}{% endfor %}{{'<|im_end|>'}}"
    "{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant\n'}}{% endif %}"
)
PROMPT = (
    "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n<image>\ndescribe it<|im_end|>"
    "<|im_start|>assistant\n"
)
SIZE = (80, 30)


@pytest.fixture(scope="module")
def source():
    made = checkpoints.next_model()
    made.config.text_config.rope_parameters = {"rope_theta": 5e6, "rope_type": "default"}
    made.config.text_config.eos_token_id = END
    made = type(made)(made.config).eval()
    torch.nn.init.normal_(made.model.image_newline)
    with torch.no_grad():
        for parameter in made.model.language_model.parameters():
            parameter.mul_(4.0) if parameter.ndim == 2 else None
    return made


@pytest.fixture(scope="module")
def folders(tmp_path_factory, source):
    """The original layout with its tower inside, as safetensors and .bin, and that of transformers."""
    root = tmp_path_factory.mktemp("34b")
    other = checkpoints.tower_folder(root / "other-tower", checkpoints.model(seed=9))
    yi = {"write_tokenizer": checkpoints.chatml_tokenizer, "rope_theta": 5000000.0, "eos_token_id": END}
    yi |= checkpoints.NEXT | {"with_tower": True}
    return {
        "safetensors": checkpoints.original_folder(root / NAME, other, source, weights="safetensors", **yi),
        "bin": checkpoints.original_folder(root / "bin" / f"{NAME}-mob", other, source, **yi),
        "stock": checkpoints.stock_folder(root / f"{NAME}-hf", source, checkpoints.chatml_tokenizer, CHAT),
    }


def load(folder, **kwargs):
    return load_pretrained_model(str(folder), None, NAME, device="cpu", **kwargs)


def picture():
    return Image.linear_gradient("L").rotate(30).resize(SIZE).convert("RGB")


@torch.no_grad()
def logits(model, ids, image_processor):
    pixels = process_images([picture()], image_processor, model.config)
    return model(**model.expand_images(ids, None, pixels, [SIZE])).logits[..., : checkpoints.VOCABULARY]


def slow_ids(folder, prompt):
    """What sentencepiece makes of a prompt: no BOS; a blank before text that begins a chunk, none after a mark."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    out = []
    for number, chunk in enumerate(prompt.split("<image>")):
        out += [IMAGE_TOKEN_INDEX] * (number > 0)
        texts = [chunk]
        for mark in ("<|im_start|>", "<|im_end|>"):
            texts = [part for text in texts for part in split(text, mark)]
        for place, text in enumerate(texts):
            if text in checkpoints.CHATML_IDS:
                out.append(checkpoints.CHATML_IDS[text])
            elif place == 0:
                out += pieces.encode(text)
            else:  # behind a piece that is certainly its own, so that no blank is put before the text
                head = pieces.encode("<unk>")
                both = pieces.encode("<unk>" + text)
                assert both[: len(head)] == head
                out += both[len(head) :]
    return out


def split(text, mark):
    parts = text.split(mark)
    joined = [parts[0]] + [piece for part in parts[1:] for piece in (mark, part)]
    return [piece for piece in joined if piece]


@pytest.mark.parametrize("layout", ["safetensors", "bin", "stock"])
def test_every_layout_gives_the_source_model(folders, source, layout):
    tokenizer, model, image_processor, context = load(folders[layout])
    assert isinstance(model, transformers.LlavaNextForConditionalGeneration) and context == 256
    assert model.config.text_config.model_type == "llama"
    assert model.config.text_config.rope_parameters["rope_theta"] == 5e6
    ours = model.state_dict()
    for name, value in source.state_dict().items():
        assert torch.equal(ours[name][: len(value)], value), name
    ids = tokenizer_image_token(PROMPT, tokenizer, return_tensors="pt")[None]
    _, stock, views, _ = load(folders["stock"])
    assert torch.allclose(logits(model, ids, image_processor), logits(stock, ids, views), atol=1e-4)


@pytest.mark.parametrize("layout", ["safetensors", "bin"])
def test_tokens_are_those_of_sentencepiece(folders, layout):
    tokenizer = load(folders[layout])[0]
    turns = PROMPT + "a red star<|im_end|><|im_start|>user\nhuman? <|im_end|><|im_start|>assistant\n"
    for prompt in (PROMPT, turns, "describe it", "<image>", "a<image>and<image>\nUSER"):
        ids = tokenizer_image_token(prompt, tokenizer)
        assert ids == slow_ids(folders[layout], prompt), prompt
    ids = tokenizer_image_token(PROMPT, tokenizer)
    assert ids[0] == checkpoints.CHATML_IDS["<|im_start|>"]  # no BOS
    assert tokenizer.pad_token_id == 0 and tokenizer.eos_token_id == END and tokenizer.padding_side == "left"


@pytest.mark.parametrize("layout", ["safetensors", "stock"])
def test_the_prompt_is_chosen_by_name_or_explicitly(folders, layout):
    tokenizer, model, _, _ = load(folders[layout])
    by_name = build_prompt("describe it", 1, tokenizer, model.config, NAME, None)
    explicit = build_prompt("describe it", 1, tokenizer, model.config, "anything", "chatml_direct")
    assert explicit == PROMPT
    own = "<|im_start|>user\n<image>\ndescribe it<|im_end|><|im_start|>assistant\n"
    assert by_name == (own if layout == "stock" else PROMPT)
    ids = encode(explicit, tokenizer)[0].tolist()
    assert ids[0] == checkpoints.CHATML_IDS["<|im_start|>"]
    assert [i in (IMAGE_TOKEN_INDEX, model.config.image_token_id) for i in ids].count(True) == 1


@pytest.mark.parametrize("layout", ["safetensors", "bin", "stock"])
def test_answers_end_with_the_turn(folders, layout):
    _, model, image_processor, _ = load(folders[layout])
    assert model.generation_config.eos_token_id == END and model.generation_config.pad_token_id is not None
    with torch.no_grad():  # a head that always writes the end of the turn
        model.lm_head.weight.zero_()
        model.lm_head.weight[END] = model.model.language_model.norm.weight
    tokenizer = load(folders[layout])[0]
    ids = tokenizer_image_token(PROMPT, tokenizer, return_tensors="pt")[None]
    pixels = process_images([picture()], image_processor, model.config)
    hidden = model.model(**model.expand_images(ids, None, pixels, [SIZE])).last_hidden_state[0, -1]
    model.lm_head.weight.data[END] = hidden.detach()
    new = model.generate(ids, images=pixels, image_sizes=[SIZE], max_new_tokens=9, do_sample=False)
    assert new.tolist() == [[END]]


@pytest.mark.parametrize("layout", ["safetensors", "stock"])
def test_pruning(folders, layout):
    tokenizer, model, image_processor, _ = load(folders[layout])
    ids = tokenizer_image_token(PROMPT, tokenizer, return_tensors="pt")[None]
    plain = logits(model, ids, image_processor)
    model.pruning.record = True
    model.config.MoB_config.update({"l_idx": 2, "K": 5, "Kp_ratio": 0.4, "k_ratio": 0.5})
    assert not torch.equal(logits(model, ids, image_processor), plain)
    record = model.pruning.records[-1]
    assert (record.K, record.K_p, record.k, record.layer) == (5, 2, 1, 2) and record.N > 8
    model.config.MoB_config["K"] = record.N
    assert torch.equal(logits(model, ids, image_processor), plain)


def test_save_and_reload(folders, tmp_path):
    tokenizer, model, image_processor, _ = load(folders["safetensors"])
    ids = tokenizer_image_token(PROMPT, tokenizer, return_tensors="pt")[None]
    before = logits(model, ids, image_processor)
    for part in (model, tokenizer, image_processor):
        part.save_pretrained(tmp_path)
    _, info = transformers.LlavaNextForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    tokens, again, views, _ = load(tmp_path)
    assert again.generation_config.eos_token_id == END
    assert tokenizer_image_token(PROMPT, tokens) == ids[0].tolist()
    assert torch.equal(logits(again, ids, views), before)


@pytest.mark.parametrize("layout", ["safetensors", "bin", "stock"])
def test_the_command(folders, layout, tmp_path, capsys):
    file = tmp_path / "picture.png"
    picture().save(file)
    more = ["--temperature", "0", "--max-new-tokens", "3", "--mob-K", "4", "--device", "cpu"]
    seen = {}
    for mode in (None, "chatml_direct"):
        chosen = ["--conv-mode", mode] if mode else []
        record = tmp_path / f"{mode}.json"
        args = [
            "--model-path",
            str(folders[layout]),
            "--image-file",
            str(file),
            "--query",
            "describe it",
            *more,
            *chosen,
        ]
        assert run_llava.main([*args, "--save-record", str(record)]) == 0
        out, err = capsys.readouterr()
        seen[mode] = out
        values = json.loads(record.read_text())
        assert values["K"] == 4 and "kept 4 of" in err
    if layout != "stock":  # its name says chatml_direct too
        assert seen[None] == seen["chatml_direct"]


def test_tokens_beyond_the_weights_are_never_written(folders, tmp_path, source):
    """Some of these tokenizers add tokens for which the weights have no rows; new rows start as noise."""
    folder = tmp_path / NAME
    folder.mkdir()
    for file in folders["safetensors"].iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "tokenizer_config.json").unlink()
    settings = json.loads((folders["safetensors"] / "tokenizer_config.json").read_text())
    more = {"content": "<|more|>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    settings["added_tokens_decoder"] = {str(checkpoints.VOCABULARY): more | {"special": True}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer, model, _, _ = load(folder)
    assert tokenizer.convert_tokens_to_ids("<|more|>") == checkpoints.VOCABULARY
    assert model.config.image_token_index == checkpoints.VOCABULARY + 1
    assert model.lm_head.weight[checkpoints.VOCABULARY :].abs().max() == 0
    assert torch.equal(model.lm_head.weight[: checkpoints.VOCABULARY], source.lm_head.weight)


@pytest.mark.parametrize("legacy", [True, None])
def test_older_tokenizers_put_a_blank_after_marks(folders, tmp_path, legacy):
    """legacy true, or not said; and so it stays after saving."""
    folder = tmp_path / NAME
    folder.mkdir()
    for file in folders["safetensors"].iterdir():
        (folder / file.name).symlink_to(file)
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"legacy": legacy}
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load(folder)[0]
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("<|im_end|>USER").input_ids)
    assert tokens[1].startswith("▁")
    tokenizer.save_pretrained(tmp_path / "saved")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again.convert_ids_to_tokens(again("<|im_end|>USER").input_ids) == tokens
