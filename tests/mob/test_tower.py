"""What is said of the vision tower, against full attention maps that the tower itself has made."""

from __future__ import annotations

import inspect
from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import mob
import zoo
from mob import tower
from mob.early import _encode
from mob.layout import IMAGE, VIDEO
from mob.tensors import flat_features
from zoo import FAMILIES

KNOWN = "mm_encoder_outputs" in inspect.signature(zoo.transformers.LlavaForConditionalGeneration.forward).parameters
pytestmark = pytest.mark.skipif(not KNOWN, reason="this transformers takes no encoded pictures")
TOWERS = ("vision_tower", "image_tower", "video_tower", "visual")
PROJECTED = ["llava", "llava_next", "llava_next_video", "llava_onevision", "video_llava", "vipllava"]
ROTARY = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]


def look(model, samples):
    """Features and what the tower says, by kind."""
    base = model.model
    with torch.no_grad():
        outputs, _, tokens = _encode(base, zoo.collate(samples, next(model.parameters()).dtype), tower.Watch(base))
    names = {"image": IMAGE, "video": VIDEO}
    return {names[name]: flat_features(output) for name, output in outputs.items()}, tokens


@contextmanager
def full_maps(model):
    """Every attention map of the towers, (V, heads, T, T), by module."""
    maps: dict = {}

    def attention(module, query, key, value, attention_mask=None, scaling=None, **_):
        maps.setdefault(module, []).append((query @ key.transpose(-1, -2) * scaling).softmax(-1))
        return (maps[module][-1] @ value).transpose(1, 2), None

    configs = [getattr(model.model, name).config for name in TOWERS if hasattr(model.model, name)]
    before = [config._attn_implementation for config in configs]
    ALL_ATTENTION_FUNCTIONS["full_map"] = attention
    try:
        for config in configs:
            config._attn_implementation = "full_map"
        yield maps
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation = name
        del ALL_ATTENTION_FUNCTIONS["full_map"]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llava", "video_llava"])
def test_attention_of_the_cls_token(name, attention):
    """Mean over heads of the CLS row of the layer that gives the features, in the order of the features."""
    model = FAMILIES[name].model(attention=attention)
    samples = [[1, FAMILIES[name].picture(0), 20], [1, FAMILIES[name].picture(1), 21]]
    _, tokens = look(model, samples)
    with full_maps(model) as maps:
        look(model, samples)
    (images,) = (getattr(model.model, one) for one in ("vision_tower", "image_tower") if hasattr(model.model, one))
    layer = images.encoder.layers[-2].self_attn  # vision_feature_layer is -2
    expected = maps[layer][0][:, :, 0, 1:].mean(1).flatten()
    assert torch.allclose(tokens[IMAGE].scores, expected, rtol=0, atol=2e-9)
    assert tokens[IMAGE].views.tolist() == [0] * 16 + [1] * 16


def test_mean_attention_where_there_is_no_cls_token(monkeypatch):
    """SigLIP: what each patch gets from all patches of its view, whatever the size of blocks; here of a whole view."""
    model, picture = FAMILIES["llava_onevision"].model(), FAMILIES["llava_onevision"].picture(0)
    monkeypatch.setattr(tower, "BLOCK", 5)
    _, tokens = look(model, [[1, picture, 20]])
    with full_maps(model) as maps:
        look(model, [[1, picture, 20]])
    expected = maps[model.model.vision_tower.encoder.layers[-1].self_attn][0].mean(1).mean(1)
    assert torch.allclose(tokens[IMAGE].scores[:16], expected[0], rtol=0, atol=2e-9)
    assert tokens[IMAGE].cls is None


@pytest.mark.parametrize("name", ROTARY)
def test_packed_pictures(name, monkeypatch):
    """Each picture and each frame on its own, rotated; the mean over the patches that become one token."""
    family = FAMILIES[name]
    model, samples = family.model(), [[1, family.picture(0), 20, family.picture(1), 21]]
    monkeypatch.setattr(tower, "BLOCK", 7)
    seen = []
    hook = model.model.visual.merger.register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    features, tokens = look(model, samples)
    with full_maps(model) as maps:
        look(model, samples)
    hook.remove()
    parts = maps[model.model.visual.blocks[-1].attn]
    assert [part.shape[-1] for part in parts] == [48, 40]
    received = torch.cat([part[0].mean(0).mean(0) for part in parts]).view(-1, 4).mean(1)
    rows = seen[0].reshape(len(received), -1).tolist()  # as the merger saw them: Qwen2.5-VL sorts them by window
    order = [rows.index(row) for row in tokens[IMAGE].hidden.tolist()]
    assert (order != sorted(order)) == (name == "qwen2_5_vl")
    assert torch.allclose(tokens[IMAGE].scores, received[order].to(tokens[IMAGE].scores), rtol=0, atol=2e-9)


@pytest.mark.parametrize("name", PROJECTED[:2] + PROJECTED[4:] + ROTARY)
def test_projected_hidden_states_are_the_features(name):
    """Where no tokens are pooled afterwards; newlines are no places of the tower."""
    family = FAMILIES[name]
    features, tokens = look(family.model(), family.samples())
    for kind, found in tokens.items():
        placed = ~found.views.isnan()
        with torch.no_grad():
            again = found.project(found.hidden[placed])
        assert torch.allclose(again, features[kind][placed], rtol=0, atol=1e-10)
        assert bool(placed.all()) == (name not in ("llava_next",))


@pytest.mark.parametrize("name", PROJECTED + ROTARY)
def test_numbers_fit(name):
    family = FAMILIES[name]
    features, tokens = look(family.model(), family.samples())
    assert set(tokens) == set(features)
    for kind, found in tokens.items():
        count = len(features[kind])
        assert {len(part) for part in (found.scores, found.views, found.keys, found.hidden)} == {count}
        there = ~found.views.isnan()
        assert bool((found.scores[there] > 0).all()) and not found.hidden[~there].any() and not found.keys[~there].any()


def test_tiles_are_placed_where_the_model_puts_them():
    """LLaVA-NeXT: the whole view, then the grid of tiles without its padding, each row ended by a newline."""
    family = FAMILIES["llava_next"]
    model, picture = family.model(), family.picture(0)  # 40 x 64 pixels in 2 x 2 tiles: 6 of 8 rows, 8 columns
    _, tokens = look(model, [[1, picture, 20]])
    found = tokens[IMAGE]
    with full_maps(model) as maps:
        look(model, [[1, picture, 20]])
    rows = maps[model.model.vision_tower.encoder.layers[-2].self_attn][0][:, :, 0, 1:].mean(1).view(5, 4, 4)
    grid = torch.cat([torch.cat([rows[1], rows[2]], 1), torch.cat([rows[3], rows[4]], 1)])[1:7]
    tiled = found.scores[16:].view(6, 9)
    assert torch.allclose(found.scores[:16], rows[0].flatten(), rtol=0, atol=2e-9)
    assert torch.allclose(tiled[:, :8], grid, rtol=0, atol=2e-9) and bool(tiled[:, 8].isnan().all())


def test_our_own_way_of_cutting_padding():
    """The original's rule for LLaVA-1.6, which lives in a class of the package llava."""
    ours = pytest.importorskip("llava.model.language_model.llava_next")
    family = FAMILIES["llava_next"]
    model, picture = family.model(), family.picture(0)
    stock = look(model, [[1, picture, 20]])[1][IMAGE]
    model.model.__class__ = ours.LlavaNextModel
    model.config.mm_patch_merge_type = "spatial_unpad"
    features, tokens = look(model, [[1, picture, 20]])
    assert len(features[IMAGE]) == len(tokens[IMAGE].scores)
    assert torch.allclose(tokens[IMAGE].scores, stock.scores, rtol=0, atol=1e-12, equal_nan=True)


def test_a_cls_token_that_is_a_visual_token():
    """Video-LLaVA's frames keep theirs: it is scored like others, and not there a second time."""
    family = FAMILIES["video_llava"]
    model = family.model()
    features, tokens = look(model, [[1, family.picture(0), 20, family.video(1), 21]])
    assert tokens[IMAGE].cls.shape == (1, 32) and tokens[VIDEO].cls is None
    assert len(features[VIDEO]) == len(tokens[VIDEO].scores) == 51
    kinds = torch.tensor([[IMAGE] * 16 + [0] + [VIDEO] * 51], dtype=torch.uint8)
    placed, row = tower.in_places(kinds, tokens), torch.tensor([[0]])
    assert torch.equal(placed.view(row, torch.arange(16)[None]).cls, tokens[IMAGE].cls)
    assert bool(placed.view(row, torch.arange(17, 68)[None]).cls.isnan().all())
    assert tokens[VIDEO].scores.view(3, 17).sum(1).allclose(torch.ones(3, dtype=torch.float64), atol=1e-7)


def test_keys_and_cls_tokens():
    family = FAMILIES["llava"]
    model, samples = family.model(), [[1, family.picture(0), 20, family.picture(1), 21]]
    _, tokens = look(model, samples)
    vision, pixels = model.model.vision_tower, zoo.collate(samples)["pixel_values"]
    with torch.no_grad():
        states = vision(pixels, output_hidden_states=True).hidden_states
        layer = vision.encoder.layers[-2]
        keys = layer.self_attn.k_proj(layer.layer_norm1(states[-3]))[:, 1:].view(2, 16, 2, 16).mean(2)
    assert torch.allclose(tokens[IMAGE].keys, keys.flatten(0, 1), rtol=0, atol=1e-10)
    assert torch.equal(tokens[IMAGE].cls, states[-2][:, 0])


def test_each_picture_has_its_own_cls_token():
    """In a batch with tiles: that of the picture's whole view."""
    family = FAMILIES["llava_next"]
    model, samples = family.model(), [[1, family.picture(0), 20], [1, family.picture(1), 21, family.picture(2), 22]]
    _, tokens = look(model, samples)
    inputs = zoo.collate(samples)
    kinds = (inputs["input_ids"] == zoo.IMAGE).to(torch.uint8)
    placed = tower.in_places(kinds, tokens)
    views = [0, 5, 10]  # each of the first two has four tiles
    starts = [(row, int(kinds[row].nonzero()[0]) + skip) for row, skip in ((0, 0), (1, 0), (1, zoo.TOKENS[1] + 1))]
    for view, (row, start) in zip(views, starts, strict=True):
        at = torch.tensor([[start + 3, start + 16, start + 30]])
        assert torch.equal(placed.view(torch.tensor([[row]]), at).cls[0], tokens[IMAGE].cls[view])


class Maps(TorchDispatchMode):
    """Notes whatever has two last dimensions of ``size``."""

    def __init__(self, size):
        super().__init__()
        self.size, self.found = size, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for one in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(one, torch.Tensor) and one.shape[-2:] == (self.size, self.size):
                self.found.append(function)
        return out


@pytest.mark.parametrize("method", ["visionzip", "scope"])
@pytest.mark.parametrize("name, size", [("llava", 17), ("llava_next", 17), ("qwen2_vl", 40)])
def test_no_full_attention_map(name, size, method, monkeypatch):
    """Of 17 tokens of a view, or of 40 patches, none is made, unless the tower's own attention makes one."""
    monkeypatch.setattr(tower, "BLOCK", 16)
    family = FAMILIES[name]
    inputs = zoo.one([1, family.picture(1), 20], torch.float32)
    found = {}
    for attention in ("sdpa", "eager"):
        model = family.model(torch.float32, attention)
        with mob.prune(model, K=5, method=method), Maps(size) as maps:
            model.generate(**inputs, max_new_tokens=1, do_sample=False)
        found[attention] = maps.found
    assert not found["sdpa"] and found["eager"]


@pytest.mark.parametrize(
    "name, message",
    [
        ("idefics3", "no vision tower that is known"),
        ("pixtral", "PixtralVisionModel, whose layers are not known"),
        ("paligemma", "does not say which layer"),
        ("glm4v", "merges its patches in a way"),
        ("aria", "36 tokens of 48 places"),
        ("fuyu", "no vision tower"),
    ],
)
def test_other_towers_say_so(name, message):
    family = FAMILIES[name]
    model, inputs = family.model(), zoo.collate(family.samples())
    with torch.no_grad():
        model(**inputs)  # transformers leaves hooks of its own

    def hooks():
        return [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules()]

    before = hooks()
    with pytest.raises(ValueError, match=message) as error, mob.prune(model, K=3, method="visionzip"):
        model.generate(**inputs, max_new_tokens=1)
    assert "'divprune', 'mmtok' or 'mob'" in str(error.value)
    assert hooks() == before


def test_encoded_pictures_cannot_be_looked_at():
    family = FAMILIES["llava"]
    model, inputs = family.model(), zoo.one([1, family.picture(0), 20])
    encoded = {"image": model.model.get_image_features(inputs.pop("pixel_values"), return_dict=True)}
    with mob.prune(model, K=3, method="scope"), pytest.raises(ValueError, match="needs pixels"):
        model.generate(**inputs, mm_encoder_outputs=encoded, max_new_tokens=1)
    with mob.prune(model, K=3, method="mmtok"):
        model.generate(**inputs, mm_encoder_outputs=encoded, max_new_tokens=1)
