"""Rules before the decoder: a shorter prompt with fewer features equals a decoder that was given just those."""

from __future__ import annotations

import copy
import inspect

import numpy as np
import pytest
import torch

import mob
import zoo
from reference import cosine, shares
from zoo import FAMILIES

K, NEW = 9, 4
ours = [family for family in FAMILIES.values() if family.ours]
KNOWN = "mm_encoder_outputs" in inspect.signature(zoo.transformers.LlavaForConditionalGeneration.forward).parameters
needs_encoded = pytest.mark.skipif(not KNOWN, reason="this transformers takes no encoded pictures")
families = pytest.mark.parametrize("family", ours, ids=[family.name for family in ours])
some = pytest.mark.parametrize("family", [FAMILIES["llava"], FAMILIES["qwen2_vl"]], ids=["llava", "qwen2_vl"])


def divprune(rows: np.ndarray, count: int) -> list[int]:
    """By the book: the loneliest first, then always the farthest from what is there."""
    n = len(rows)
    if count >= n:
        return list(range(n))
    far = [[1 - cosine(rows[i], rows[j]) for j in range(n)] for i in range(n)]
    chosen = [max(range(n), key=lambda i: (min(far[i][j] for j in range(n) if j != i), -i))]
    while len(chosen) < count:
        rest = [i for i in range(n) if i not in chosen]
        chosen.append(max(rest, key=lambda i: (min(far[i][c] for c in chosen), -i)))
    return sorted(chosen)


class Slow:
    """One sample, no cache: the stock decoder on the embeddings that are left."""

    def __init__(self, model, keep=K, positions="reindex"):
        self.model, self.keep, self.positions = model, keep, positions
        self.decoder = model.get_decoder()

    def capture(self, inputs):
        caught = {}
        hook = self.decoder.register_forward_pre_hook(lambda m, a, kw: caught.update(kw), with_kwargs=True)
        with torch.no_grad():
            self.model(**inputs, use_cache=False)
        hook.remove()
        return caught

    @torch.no_grad()
    def generate(self, sample, new=NEW):
        inputs, answer, logits = zoo.one(sample), [], []
        for _ in range(new):
            given = self.capture(inputs)
            ids, embeds = inputs["input_ids"][0], given["inputs_embeds"]
            visual = [i for i, token in enumerate(ids.tolist()) if token in (zoo.IMAGE, zoo.VIDEO)]
            kept, start, lengths = [], 0, zoo.lengths(sample)
            for length, count in zip(lengths, shares(min(self.keep, len(visual)), lengths), strict=True):
                rows = embeds[0, visual[start : start + length]].double().numpy()
                kept += [start + i for i in divprune(rows, count)] if count else []
                start += length
            left = [visual[i] for i in kept]
            stay = [i for i in range(len(ids)) if i not in visual or i in left]
            out = self.decoder(**self.short(given, stay, len(ids)))
            logits.append(self.model.lm_head(out.last_hidden_state)[0, -1])
            answer.append(int(logits[-1].argmax()))
            one = {"input_ids": torch.tensor([[answer[-1]]])}
            inputs = {**inputs, "input_ids": torch.cat([inputs["input_ids"], one["input_ids"]], 1)}
            for name in ("attention_mask", "mm_token_type_ids"):
                if name in inputs:
                    more = torch.full((1, 1), int(name == "attention_mask"))
                    inputs[name] = torch.cat([inputs[name], more], 1)
        return answer, torch.stack(logits), kept

    def short(self, given, stay, total):
        positions = given.get("position_ids")
        if positions is None:
            positions = torch.arange(total)[None]
        if positions.ndim == 3:  # multimodal: always those of the whole prompt
            positions = positions[-3:, :, stay]
        else:
            positions = positions[:, stay] if self.positions == "keep" else torch.arange(len(stay))[None]
        out = {
            "inputs_embeds": given["inputs_embeds"][:, stay],
            "position_ids": positions,
            "attention_mask": torch.ones(1, len(stay), dtype=torch.long),
            "use_cache": False,
        }
        if given.get("deepstack_visual_embeds"):
            mask = given["visual_pos_masks"]
            which = mask[0].nonzero()[:, 0].tolist()
            rows = [which.index(i) for i in stay if i in which]
            out |= {"visual_pos_masks": mask[:, stay]}
            out |= {"deepstack_visual_embeds": [level[rows] for level in given["deepstack_visual_embeds"]]}
        return out


def generate(model, inputs, **options):
    options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, **options}
    out = model.generate(**inputs, return_dict_in_generate=True, output_logits=True, **options)
    assert torch.equal(out.sequences[:, : inputs["input_ids"].shape[1]].repeat_interleave(1, 0), _prompts(inputs, out))
    return out.sequences[:, inputs["input_ids"].shape[1] :].tolist(), torch.stack(out.logits, 1), out


def _prompts(inputs, out):
    """Whatever was dropped, the answer follows the prompt that was given."""
    return inputs["input_ids"].repeat_interleave(len(out.sequences) // len(inputs["input_ids"]), 0)


@needs_encoded
@families
def test_generate_equals_the_reference(family):
    samples, model = family.samples(), family.model()
    with mob.prune(model, K=K, method="divprune") as pruning:
        answers, logits, out = generate(model, zoo.collate(samples))
    longest = max(len(zoo.one(s)["input_ids"][0]) - sum(zoo.lengths(s)) + min(K, sum(zoo.lengths(s))) for s in samples)
    assert out.past_key_values.get_seq_length() == longest + NEW - 1  # every layer is short
    slow = Slow(model)
    for row, sample in enumerate(samples):
        expected, slow_logits, kept = slow.generate(sample)
        record = pruning.records[row]
        assert record.keep_indices == kept and answers[row] == expected
        assert (logits[row] - slow_logits.float()).abs().max() < 1e-5 * max(1.0, slow_logits.abs().max())
        assert (record.N, record.K, record.layer, record.method) == (sum(zoo.lengths(sample)), len(kept), 0, "divprune")


@needs_encoded
@pytest.mark.parametrize("name", ["qwen2_5_omni_thinker", "qwen3_omni_moe_thinker"])
def test_a_rate_of_frames_under_another_name_reaches_the_positions(name):
    """One token: a random answer may be the mark of a picture, which Qwen-Omni's positions stumble over."""
    family = FAMILIES[name]
    samples, model = family.samples(), family.model()
    with mob.prune(model, K=K, method="divprune"):
        answers, logits, _ = generate(model, zoo.collate(samples), max_new_tokens=1)
    for row, sample in enumerate(samples):
        expected, slow_logits, _ = Slow(model).generate(sample, new=1)
        assert answers[row] == expected
        assert (logits[row] - slow_logits.float()).abs().max() < 1e-5 * max(1.0, slow_logits.abs().max())


@needs_encoded
@families
def test_keeping_everything_is_bit_identical(family):
    model, inputs = family.model(torch.float32), zoo.collate(family.samples(), torch.float32)
    plain, logits, _ = generate(model, inputs)
    with torch.no_grad():
        whole = model(**inputs).logits
    with mob.prune(model, K=10_000, method="divprune"):
        same, same_logits, _ = generate(model, inputs)
        with torch.no_grad():
            direct = model(**inputs).logits
    assert same == plain and torch.equal(logits, same_logits) and torch.equal(whole, direct)


@needs_encoded
@families
def test_before_and_within_the_decoder(family):
    """Half by diversity before, then MoB: indices still count from the whole picture."""
    samples, model = family.samples(), family.model()
    options = {"divprune": {"K": 0.5}}
    with mob.prune(model, K=4, method="divprune+mob", layer=family.layer, options=options) as pruning:
        answers, _, out = generate(model, zoo.collate(samples))
    with mob.prune(model, K=0.5, method="divprune") as first:
        generate(model, zoo.collate(samples), max_new_tokens=1)
    for both, half, sample in zip(pruning.records, first.records, samples, strict=True):
        N = sum(zoo.lengths(sample))
        assert both.N == half.N == N and min(4, half.K) == both.K
        assert set(both.keep_indices) <= set(half.keep_indices)
        assert both.grids == half.grids and (both.method, both.layer) == ("mob", family.layer)
        if N:
            (stage,) = both.stages
            assert (stage["method"], stage["layer"], stage["N"], stage["K"]) == ("divprune", 0, N, half.K)
            assert 0 < stage["radius"] <= 2
    cache = out.past_key_values
    assert cache.get_seq_length(0) > cache.get_seq_length(family.layer)


@needs_encoded
@families
def test_a_forward_pass_keeps_its_length(family):
    """Logits and loss of a plain pass stand where they stood; the last position says what generate says."""
    model, samples = family.model(), family.samples()
    inputs = zoo.collate(samples)
    labels = torch.where(inputs["input_ids"] >= 30, inputs["input_ids"], -100)
    with mob.prune(model, K=K, method="divprune"), torch.no_grad():
        out = model(**inputs, labels=labels)
        first = generate(model, inputs, max_new_tokens=1)[1][:, 0]
        plain = model(**inputs)
    assert out.logits.shape[:2] == inputs["input_ids"].shape and out.loss.isfinite()
    assert torch.allclose(plain.logits[:, -1].float(), first, atol=1e-6)


@needs_encoded
@families
def test_positions_that_a_call_gives(family):
    """A batch may come with positions of its own; what is left of them is what the rule's own would be."""
    model, inputs = family.model(), zoo.collate(family.samples())
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)
    if hasattr(model.model, "get_rope_index"):
        names = ("input_ids", "attention_mask", "mm_token_type_ids", "image_grid_thw", "video_grid_thw")
        positions, _ = model.model.get_rope_index(**{k: v for k, v in inputs.items() if k in names})
    with mob.prune(model, K=K, method="divprune"), torch.no_grad():
        given = model(**inputs, position_ids=positions).logits[:, -1].float()
        assert torch.allclose(given, generate(model, inputs, max_new_tokens=1)[1][:, 0], atol=1e-6)


@needs_encoded
@some
def test_kept_positions(family):
    model, sample = family.model(), family.samples()[0]
    with mob.prune(model, K=K, method="divprune", positions="keep"):
        answers, logits, _ = generate(model, zoo.one(sample))
    expected, slow_logits, _ = Slow(model, positions="keep").generate(sample)
    assert answers == [expected] and (logits[0] - slow_logits.float()).abs().max() < 1e-5


@needs_encoded
@some
def test_beams_and_several_sequences(family):
    model, samples = family.model(), family.samples()[:2]
    with mob.prune(model, K=K, method="divprune"):
        together = model.generate(**zoo.collate(samples), num_beams=2, max_new_tokens=3, pad_token_id=0)[:, -3:]
        for row, sample in enumerate(samples):
            alone = model.generate(**zoo.one(sample), num_beams=2, max_new_tokens=3, pad_token_id=0)
            assert torch.equal(together[row], alone[0, -3:])
            assert torch.equal(alone[0, :-3], zoo.one(sample)["input_ids"][0])
        several = {"num_return_sequences": 2, "num_beams": 2, "max_new_tokens": 3}
        assert model.generate(**zoo.collate(samples), **several, pad_token_id=0).shape[0] == 4


@needs_encoded
@some
def test_lengths_count_the_whole_prompt(family):
    model, inputs = family.model(), zoo.one(family.samples()[0])
    length = inputs["input_ids"].shape[1]
    with mob.prune(model, K=K, method="divprune"):
        assert model.generate(**inputs, max_length=length + 3, do_sample=False).shape[1] == length + 3


@needs_encoded
def test_attached_thin_classes_and_copies(tmp_path):
    """The mixin's generate, a deep copy with weights of its own, and a stock model that is attached for good."""
    family = FAMILIES["llava"]
    inputs = zoo.one(family.samples()[0])
    stock = family.model()
    mob.attach(stock)
    stock.config.MoB_config = {"K": K, "method": "divprune"}
    expected = stock.generate(**inputs, max_new_tokens=NEW, do_sample=False)
    twin = copy.deepcopy(stock)
    assert torch.equal(twin.generate(**inputs, max_new_tokens=NEW, do_sample=False), expected)
    with torch.no_grad():
        for parameter in stock.parameters():
            parameter.zero_()
    assert torch.equal(twin.generate(**inputs, max_new_tokens=NEW, do_sample=False), expected)

    class LlavaForConditionalGeneration(mob.MoBMixin, zoo.transformers.LlavaForConditionalGeneration):
        pass

    thin = LlavaForConditionalGeneration(twin.config).eval().double()
    thin.load_state_dict(twin.state_dict())
    thin.generation_config.eos_token_id = None
    thin.config.MoB_config = {"K": K, "method": "divprune"}
    assert torch.equal(thin.generate(**inputs, max_new_tokens=NEW, do_sample=False), expected)


@needs_encoded
def test_nothing_is_left_behind():
    family = FAMILIES["llava"]
    model, inputs = family.model(), zoo.collate(family.samples())
    with torch.no_grad():
        plain = model(**inputs).logits
    before = set(model.__dict__), set(model.model.__dict__)
    with pytest.raises(RuntimeError), mob.prune(model, K=K, method="divprune"):
        generate(model, inputs, max_new_tokens=1)
        raise RuntimeError
    assert (set(model.__dict__), set(model.model.__dict__)) == before
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, plain)


@needs_encoded
def test_text_alone_is_not_touched():
    family = FAMILIES["llava"]
    model, inputs = family.model(torch.float32), zoo.one(family.samples()[2], torch.float32)
    plain = generate(model, inputs)
    with mob.prune(model, K=K, method="divprune") as pruning:
        same = generate(model, inputs)
    assert plain[0] == same[0] and torch.equal(plain[1], same[1])
    assert [(r.N, r.K) for r in pruning.records] == [(0, 0)]


@needs_encoded
def test_a_cache_cannot_go_on():
    family = FAMILIES["llava"]
    model, inputs = family.model(), zoo.one(family.samples()[0])
    with mob.prune(model, K=K, method="divprune"):
        out = model.generate(**inputs, max_new_tokens=2, return_dict_in_generate=True)
        more = zoo.one([40, family.picture(1), 41])
        whole = {"input_ids": torch.cat([out.sequences, more["input_ids"]], 1), "pixel_values": more["pixel_values"]}
        with pytest.raises(ValueError, match="give the whole conversation again"):
            model.generate(**whole, past_key_values=out.past_key_values, max_new_tokens=2)


@pytest.mark.skipif(KNOWN, reason="only for transformers that take no encoded pictures")
def test_old_transformers_say_so():
    family = FAMILIES["llava"]
    with mob.prune(family.model(), K=K, method="divprune") as pruning, pytest.raises(ValueError, match="update it"):
        pruning.model.generate(**zoo.one(family.samples()[0]), max_new_tokens=1)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"method": "mob+divprune", "K": 4}, "before the decoder first"),
        ({"method": "mob+visual", "K": 4}, "at most one within"),
        ({"method": "divprune+mob", "K": 0.5}, "how many tokens divprune keeps"),
        ({"method": "divprune+mbo", "K": 4}, "did you mean 'mob'"),
        ({"method": "divprune+mob", "K": 4, "options": {"fastv": {}}}, "options by (their|the rules') names"),
        ({"method": "divprune+mob", "K": 4, "options": {"divprune": {"K": 0}}}, "K=0"),
        ({"method": "divprune", "K": 4, "positions": "kept"}, "did you mean 'keep'"),
    ],
)
def test_wrong_combinations(settings, message):
    with pytest.raises(ValueError, match=message):
        mob.prune(FAMILIES["llava"].model(), **settings)
