"""Every rule before the decoder on every family: exact budgets, batches, merged tokens in the decoder."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

import mob
import zoo
from mob.methods import create
from mob.methods.pooling import windows
from reference import cosine, shares
from zoo import FAMILIES

K, NEW = 9, 3
KNOWN = "mm_encoder_outputs" in inspect.signature(zoo.transformers.LlavaForConditionalGeneration.forward).parameters
pytestmark = pytest.mark.skipif(not KNOWN, reason="this transformers takes no encoded pictures")
ours = [family for family in FAMILIES.values() if family.ours]
families = pytest.mark.parametrize("family", ours, ids=[family.name for family in ours])
some = pytest.mark.parametrize(
    "family", [FAMILIES[n] for n in ("llava", "llava_next", "qwen2_vl")], ids=lambda f: f.name
)
rules = pytest.mark.parametrize("method", ["cdpruner", "divprune", "mmtok", "pooling", "scope", "visionzip"])


def generate(model, inputs, **options):
    options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, **options}
    out = model.generate(**inputs, return_dict_in_generate=True, output_logits=True, **options)
    return out.sequences[:, inputs["input_ids"].shape[1] :].tolist(), torch.stack(out.logits, 1)


@families
@rules
def test_a_batch_equals_its_samples(family, method):
    """Padded, with several pictures and with none: exactly K, split over pictures; the same alone."""
    model, samples = family.model(), family.samples()
    with mob.prune(model, K=K, method=method) as together:
        answers, logits = generate(model, zoo.collate(samples))
    for row, sample in enumerate(samples):
        with mob.prune(model, K=K, method=method) as alone:
            answer, single = generate(model, zoo.one(sample))
        record, lengths = together.records[row], zoo.lengths(sample)
        assert record.keep_indices == alone.records[0].keep_indices and answer == [answers[row]]
        assert (logits[row] - single[0]).abs().max() < 1e-5 * max(1.0, float(single.abs().max()))
        assert (
            len(set(record.keep_indices)) == min(K, sum(lengths)) and sorted(record.keep_indices) == record.keep_indices
        )
        counts = [record.image.count(number) for number in range(len(lengths))]
        assert counts == shares(min(K, sum(lengths)), lengths)


@families
@rules
def test_keeping_everything_is_bit_identical(family, method):
    model, inputs = family.model(torch.float32), zoo.collate(family.samples(), torch.float32)
    plain, logits = generate(model, inputs)
    with mob.prune(model, K=10_000, method=method):
        same, same_logits = generate(model, inputs)
    assert same == plain and torch.equal(logits, same_logits)


@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_vl", "llava_next_video"])
@rules
@pytest.mark.parametrize("number, per_picture", [(0, True), (1, True), (1, False)], ids=["one", "two", "together"])
def test_every_budget(name, method, number, per_picture, dtype=torch.bfloat16):
    """From one token to all but one, in the dtype that models have; a picture or a video may lose all its tokens."""
    family = FAMILIES[name]
    sample = family.samples()[number]
    model, inputs, N = family.model(dtype), zoo.one(sample, dtype), sum(zoo.lengths(sample))
    for count in (1, 2, N // 2, N - 1):
        with mob.prune(model, K=count, method=method, per_picture=per_picture) as pruning:
            _, logits = generate(model, inputs, max_new_tokens=1)
        assert len(set(pruning.records[0].keep_indices)) == count and logits.isfinite().all()


@some
def test_a_cache_of_a_plain_pass_is_refused(family):
    """It would hold the short prompt, and whoever goes on with it would count positions from there."""
    model, inputs = family.model(torch.float32), zoo.one(family.samples()[0], torch.float32)
    with mob.prune(model, K=K, method="divprune"), torch.no_grad():
        with pytest.raises(ValueError, match="call model.generate"):
            model(**inputs, past_key_values=zoo.transformers.DynamicCache())
        assert model(**inputs, use_cache=True).past_key_values is None


@some
def test_without_K_nothing_is_pruned(family):
    """Also where the options say how many a rule before the decoder keeps."""
    model, inputs = family.model(torch.float32), zoo.one(family.samples()[0], torch.float32)
    plain, logits = generate(model, inputs)
    with mob.prune(model, method="divprune+mob", options={"divprune": {"K": 4}}) as pruning:
        same, same_logits = generate(model, inputs)
    assert same == plain and torch.equal(logits, same_logits) and not pruning.records


@some
@rules
def test_before_and_within_the_decoder(family, method):
    """Half before, then MoB; what MoB keeps are places that were left."""
    samples, model = family.samples(), family.model()
    with mob.prune(model, K=4, method=f"{method}+mob", options={method: {"K": 0.5}}) as both:
        generate(model, zoo.collate(samples))
    with mob.prune(model, K=0.5, method=method) as first:
        generate(model, zoo.collate(samples), max_new_tokens=1)
    for after, half in zip(both.records, first.records, strict=True):
        assert set(after.keep_indices) <= set(half.keep_indices) and min(4, half.K) == after.K
        for stage in after.stages:
            assert (stage["method"], stage["K"]) == (method, half.K) and 0 < stage["radius"] <= 2


@some
@pytest.mark.parametrize("method", ["divprune+visionzip", "visionzip+divprune", "pooling+divprune", "scope+cdpruner"])
def test_two_rules_before_the_decoder(family, method):
    first, second = method.split("+")
    model, inputs = family.model(), zoo.collate(family.samples())
    with mob.prune(model, K=4, method=method, options={first: {"K": 0.5}}) as both:
        generate(model, inputs, max_new_tokens=1)
    with mob.prune(model, K=0.5, method=first) as one:
        generate(model, inputs, max_new_tokens=1)
    for after, before in zip(both.records, one.records, strict=True):
        assert set(after.keep_indices) <= set(before.keep_indices) and min(4, before.K) == after.K


@some
@rules
@pytest.mark.parametrize("settings", [{"per_picture": False}, {"keep_newlines": True}, {"positions": "keep"}], ids=str)
def test_settings(family, method, settings):
    model, inputs = family.model(), zoo.collate(family.samples())
    with mob.prune(model, K=K, method=method, **settings) as pruning, torch.no_grad():
        _, logits = generate(model, inputs, max_new_tokens=1)
        plain = model(**inputs).logits[:, -1]
    assert torch.allclose(plain.float(), logits[:, 0], rtol=0, atol=1e-5 * max(1.0, float(logits.abs().max())))
    for record, sample in zip(pruning.records, family.samples(), strict=False):
        newlines = sum(column < 0 <= row for row, column in zip(record.row, record.column, strict=True))
        assert record.K - newlines * ("keep_newlines" in settings) == min(K, sum(zoo.lengths(sample)))


@some
def test_baselines_before_the_decoder(family):
    """Random choice and farthest-point sampling at the same place and budget as the others."""
    model, inputs = family.model(), zoo.collate(family.samples())
    for method in ("random", "visual"):
        with mob.prune(model, K=K, method=method, options={"early": True}) as pruning:
            generate(model, inputs)
        assert all((record.layer, record.method) == (0, method) for record in pruning.records)
        assert [record.K for record in pruning.records] == [
            min(K, sum(zoo.lengths(sample))) for sample in family.samples()
        ]


# ---------------------------------------------------------------------------------------------------------------
# What the decoder is given, written out


def decoded(model, inputs, places, values, positions):
    """Logits after a prompt whose visual tokens are replaced by ``values`` at ``places`` of the picture."""
    decoder, caught = model.get_decoder(), {}
    hook = decoder.register_forward_pre_hook(lambda m, a, kw: caught.update(kw), with_kwargs=True)
    with torch.no_grad():
        model(**inputs, use_cache=False)
    hook.remove()
    ids = inputs["input_ids"][0].tolist()
    visual = [at for at, token in enumerate(ids) if token == zoo.IMAGE]
    embeds = caught["inputs_embeds"].clone()
    for place, value in zip(places, values, strict=True):
        embeds[0, visual[place]] = torch.as_tensor(value)
    stay = [at for at in range(len(ids)) if at not in visual or visual.index(at) in places]
    given = caught.get("position_ids")
    if given is not None and given.ndim == 3:
        where = given[-3:, :, stay]
    else:
        where = torch.tensor([stay]) if positions == "keep" else torch.arange(len(stay))[None]
    mask = torch.ones(1, len(stay), dtype=torch.long)  # without one, gaps in positions pass for packed sequences
    with torch.no_grad():
        out = decoder(inputs_embeds=embeds[:, stay], position_ids=where, attention_mask=mask, use_cache=False)
        return model.lm_head(out.last_hidden_state)[0, -1].float()


def check(model, inputs, method, places, values, positions, **options):
    with mob.prune(model, K=len(places), method=method, positions=positions, options=options) as pruning:
        _, logits = generate(model, inputs, max_new_tokens=1)
    expected = decoded(model, inputs, places, values, positions)
    assert pruning.records[0].keep_indices == list(places)
    assert (logits[0, 0] - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("positions", ["keep", "reindex"])
@pytest.mark.parametrize("name, grid", [("llava", (4, 4)), ("qwen2_vl", (4, 3))])
@pytest.mark.parametrize("count", [4, 7])
def test_pooled_tokens_in_the_decoder(name, grid, count, positions):
    family = FAMILIES[name]
    model, inputs = family.model(), zoo.one([1, 20, family.picture(0), 30, 31])
    media = {key: value for key, value in inputs.items() if key in ("pixel_values", "image_grid_thw")}
    with torch.no_grad():
        rows = model.model.get_image_features(**media, return_dict=True).pooler_output[0].numpy()
    values = {}
    for down, across in windows(*grid, count):
        members = [i * grid[1] + j for i in range(*down) for j in range(*across)]
        values[sum(down) // 2 * grid[1] + sum(across) // 2] = rows[members].mean(0)
    places = sorted(values)
    check(model, inputs, "pooling", places, [values[i] for i in places], positions)


@pytest.mark.parametrize("positions", ["keep", "reindex"])
@pytest.mark.parametrize("order", ["raster", "published"])
@pytest.mark.parametrize("count, contextual", [(5, 1), (8, 3)])
def test_visionzip_in_the_decoder(count, contextual, order, positions):
    """LLaVA-1.5, from pixels to logits, with the tower's full attention map."""
    family = FAMILIES["llava"]
    model, inputs = family.model(attention="eager"), zoo.one([1, 20, family.picture(0), 30, 31])
    vision, projector = model.model.vision_tower, model.model.multi_modal_projector
    with torch.no_grad():
        seen = vision(inputs["pixel_values"], output_hidden_states=True, output_attentions=True)
        hidden, before = seen.hidden_states[-2][0], seen.hidden_states[-3][0]
        layer = vision.encoder.layers[-2]
        keys = layer.self_attn.k_proj(layer.layer_norm1(before)).view(17, 2, 16).mean(1).numpy()
    attention = seen.attentions[-2][0, :, 0].sum(0).tolist()
    ranked = sorted(range(1, 17), key=lambda i: -attention[i])
    dominant = sorted(ranked[: count - contextual - 1])
    rest = sorted(ranked[count - contextual - 1 :])
    targets = rest[:: len(rest) // contextual][:contextual]
    members = {target: [] for target in targets}
    for i in rest:
        if i not in targets:
            members[max(targets, key=lambda t: cosine(keys[i], keys[t]))].append(i)
    merged = [hidden[t] + (hidden[members[t]].mean(0) if members[t] else 0) for t in targets]
    with torch.no_grad():
        tokens = projector(torch.stack([hidden[0], *(hidden[i] for i in dominant), *merged])).numpy()
    own = next(i for i in ranked if i not in dominant and i not in targets)
    places = [i - 1 for i in (own, *dominant, *targets)]
    values = tokens[np.argsort(places)] if order == "raster" else tokens
    check(model, inputs, "visionzip", sorted(places), values, positions, contextual=contextual, order=order)


def test_scope_from_pixels():
    """LLaVA-1.5, with the tower's full attention map: the tokens that are kept, as they are."""
    family = FAMILIES["llava"]
    model, inputs = family.model(attention="eager"), zoo.one([1, 20, family.picture(1), 30, 31])
    with torch.no_grad():
        seen = model.model.vision_tower(inputs["pixel_values"], output_hidden_states=True, output_attentions=True)
        rows = model.model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output[0].numpy()
    hidden, weights = seen.hidden_states[-2][0, 1:].numpy(), seen.attentions[-2][0, :, 0, 1:].sum(0).tolist()
    chosen, covered = [], [0.0] * 16
    for _ in range(6):
        gains = {
            j: weights[j] * sum(max(0.0, cosine(hidden[i], hidden[j]) - covered[i]) for i in range(16))
            for j in range(16)
            if j not in chosen
        }
        chosen.append(max(gains, key=gains.get))
        covered = [max(covered[i], cosine(hidden[i], hidden[chosen[-1]])) for i in range(16)]
    places = sorted(chosen)
    check(model, inputs, "scope", places, rows[places], "reindex")


def test_rules_see_the_words_of_the_prompt():
    """CDPruner and MMTok: another question, another choice; VisionZip, SCOPE and pooling do not look."""
    family = FAMILIES["llava"]
    model, picture = family.model(), family.picture(0)
    for method in ("cdpruner", "mmtok", "scope", "visionzip", "pooling"):
        with mob.prune(model, K=6, method=method) as pruning:
            for words in ([30, 31], [45, 50, 52], [60, 33]):
                generate(model, zoo.one([1, picture, *words]), max_new_tokens=1)
        kept = {tuple(record.keep_indices) for record in pruning.records}
        assert (len(kept) > 1) == (create(method).objective == "both"), method
