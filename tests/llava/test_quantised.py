"""load_8bit and load_4bit, with bitsandbytes' CPU kernels: the language model is quantised and nothing else."""

from __future__ import annotations

import pytest
import torch

import checkpoints
from llava.model import builder
from llava.scenes.checkpoint import NUM_PATCHES, PATH, PROMPT
from llava.scenes.generator import sample

bitsandbytes = pytest.importorskip("bitsandbytes")
KINDS = {"8": bitsandbytes.nn.Linear8bitLt, "4": bitsandbytes.nn.Linear4bit}


@pytest.mark.parametrize("bits", KINDS)
@pytest.mark.parametrize("layout", ["original", "stock"])
def test_only_the_language_model_is_quantised(tmp_path, layout, bits):
    source = checkpoints.model()
    tower = checkpoints.tower_folder(tmp_path / "tower", source)
    folder = tmp_path / "llava-v1.5"
    if layout == "stock":
        checkpoints.stock_folder(folder, source)
    else:
        checkpoints.original_folder(folder, tower, source)
    options = {f"load_{bits}bit": True, "device": "cpu"}
    _, model, _, _ = builder.load_pretrained_model(str(folder), None, "llava-v1.5-mob", **options)
    linear = {name for name, module in source.named_modules() if isinstance(module, torch.nn.Linear)}
    inner = {name for name in linear if "language_model" in name}
    assert inner < linear
    for name in linear:
        assert (type(model.get_submodule(name)) is KINDS[bits]) == (name in inner), name
    weight = "model.multi_modal_projector.linear_1.weight"
    assert torch.equal(model.get_parameter(weight), source.get_parameter(weight))


def test_layers_that_cannot_be_packed_stay_as_they_are():
    """On CPUs with AVX512-BF16, which this one need not be: bitsandbytes would fail on them in the first pass."""
    layers = torch.nn.ModuleList(bitsandbytes.nn.Linear4bit(*widths) for widths in ((128, 64), (160, 64), (128, 48)))
    for layer in layers:
        layer.support_avx512bf16_for_cpu = True
    builder.leave_unpacked(layers)
    assert [layer.support_avx512bf16_for_cpu for layer in layers] == [True, False, False]


@pytest.mark.parametrize("bits", KINDS)
@torch.no_grad()
def test_a_quantised_model_reads_signs(bits):
    options = {f"load_{bits}bit": True, "device": "cpu"}
    tokenizer, model, processor, _ = builder.load_pretrained_model(str(PATH), None, "llava-v1.5-mob", **options)
    scenes = [scene for scene in map(sample, range(10**6, 10**6 + 30)) if scene.number][:12]
    text = PROMPT.replace("<image>", "<image>" * NUM_PATCHES).format("what number is on the sign ?")
    ids = tokenizer([text] * len(scenes), return_tensors="pt", return_token_type_ids=False)
    pixels = processor([scene.draw() for scene in scenes], return_tensors="pt")["pixel_values"]
    for K in (None, 65):
        model.config.MoB_config.update({"K": K} if K else {})
        out = model.generate(**ids, pixel_values=pixels, do_sample=False, max_new_tokens=2)
        answers = tokenizer.batch_decode(out[:, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        right = [answer.strip() == scene.number for answer, scene in zip(answers, scenes, strict=True)]
        assert sum(right) >= len(scenes) - 2, (K, answers)
