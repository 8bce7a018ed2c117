"""Every family: keeping everything changes nothing, and keeping less equals a decoder that recomputes everything.

What is found here goes into ``docs/models.md``, see ``conftest.py``. Families that are not ours get the tests marked
``every``.
"""

from __future__ import annotations

import functools
import inspect

import pytest
import torch

import mob
import zoo
from every_family import every
from mob.anatomy import dissect
from reference import SlowDecoder
from zoo import FAMILIES

K, K_P, FOLD, NEW = 9, 4, 2, 4
ENCODES_FIRST = "mm_encoder_outputs"  # transformers 5.17 has no such keyword, and beams of uneven samples fail in it

ours = [family for family in FAMILIES.values() if family.ours]
families = pytest.mark.parametrize("family", ours, ids=[family.name for family in ours])
qwens = [family for family in ours if family.name.startswith("qwen")]
tiled = [family for family in ours if family.picture is zoo.tiled_picture]


def each(chosen):
    return pytest.mark.parametrize("family", chosen, ids=[family.name for family in chosen])


def budget(n):
    return min(K, n), K_P if n > K else 0, FOLD


def generate(model, inputs, **options):
    options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, **options}
    out = model.generate(**inputs, return_dict_in_generate=True, output_logits=True, **options)
    return out.sequences[:, inputs["input_ids"].shape[1] :].tolist(), torch.stack(out.logits, 1), out


def pruned(model, family, **more):
    return mob.prune(model, **{"K": K, "K_p": K_P, "k": FOLD, "layer": family.layer, **more})


def new_tokens(family):
    return NEW if family.ours else 2


@functools.cache
def batch_answers(family):
    """Reference answers, logits and kept tokens of each of the family's samples."""
    return slow_answers(family, family.samples())


def slow_answers(family, samples, **options):
    """The same of some samples, or by other rules."""
    slow = SlowDecoder(family.model(), budget, family.layer, attends=family.attends, **options)
    out = []
    for sample in samples:
        answers, logits = slow.generate([(zoo.one(sample), zoo.lengths(sample), new_tokens(family))])
        out.append((answers[0], logits[0], slow.kept[0]))
    return out


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@every
def test_keeping_everything_is_bit_identical(family, attention):
    model, inputs = family.model(torch.float32, attention), zoo.collate(family.samples(), torch.float32)
    plain, logits, _ = generate(model, inputs)
    with mob.prune(model, K=10_000, layer=family.layer) as pruning:
        same, same_logits, _ = generate(model, inputs)
    assert same == plain and torch.equal(logits, same_logits)
    assert [record.K for record in pruning.records] == [sum(zoo.lengths(sample)) for sample in family.samples()]


@pytest.mark.parametrize(
    "dtype, attention, tolerance",
    [(torch.float64, "sdpa", 1e-6), (torch.float32, "eager", 1e-4)],
    ids=["sdpa", "eager"],
)
@every
def test_generate_equals_the_reference(family, dtype, attention, tolerance):
    """Batch of three with unequal numbers of visual tokens, padded on the left."""
    samples, model = family.samples(), family.model(dtype, attention)
    with pruned(model, family) as pruning:
        answers, logits, _ = generate(model, zoo.collate(samples, dtype), max_new_tokens=new_tokens(family))
    for row, (expected, slow, kept) in enumerate(batch_answers(family)):
        assert pruning.records[row].keep_indices == kept
        assert answers[row] == expected
        assert (logits[row] - slow.float()).abs().max() <= tolerance * max(1.0, slow.abs().max())
    assert [record.N for record in pruning.records] == [sum(zoo.lengths(sample)) for sample in samples]
    assert all(min(K, record.N) == record.K for record in pruning.records)


@families
def test_one_budget_over_all_pictures(family):
    sample, model = family.samples()[1], family.model()
    with pruned(model, family, per_picture=False) as pruning:
        answers, logits, _ = generate(model, zoo.one(sample))
    ((expected, slow, kept),) = slow_answers(family, [sample], per_picture=False)
    assert pruning.records[0].keep_indices == kept and answers == [expected]
    assert (logits[0] - slow.float()).abs().max() < 1e-5


@every
def test_pruning_changes_the_logits(family):
    """Guards the tests above: were nothing dropped, they would hold too."""
    model, inputs = family.model(), zoo.collate(family.samples())
    with torch.no_grad():
        plain = model(**inputs).logits[:, -1]
        with pruned(model, family):
            short = model(**inputs).logits[:, -1]
    *changed, without = (plain - short).abs().amax(-1)
    assert min(changed) > 1e-3 and without < 1e-12


@every
def test_a_second_turn_with_a_new_picture(family):
    if not family.turns:
        pytest.skip("takes the pictures of one turn only, or takes later ones in a way of its own")
    model = family.model()
    first, second = [1, 20, family.picture(0), 30, 31], [40, family.picture(1), 41, 42]
    turns = [(zoo.one(first), zoo.lengths(first), NEW), (zoo.one(second), zoo.lengths(second), NEW)]
    slow = SlowDecoder(model, budget, family.layer)
    expected, slow_logits = slow.generate(turns)
    with pruned(model, family) as pruning:
        answers, _, out = generate(model, turns[0][0])
        whole = torch.cat([out.sequences, turns[1][0]["input_ids"]], 1)
        answer, logits = _continue(model, out.past_key_values, whole, turns, NEW)
    assert [answers[0], answer] == expected
    assert (logits - slow_logits[1]).abs().max() < 1e-6
    assert [record.keep_indices for record in pruning.records] == slow.kept


def _continue(model, cache, whole, turns, new):
    """A later turn by plain forward calls, greedy: stock generate cannot pass a new picture to a Qwen with a cache."""
    past, (first, *_), (inputs, *_) = cache.get_seq_length(), *turns
    media = {k: v for k, v in inputs.items() if k not in ("input_ids", "attention_mask", "mm_token_type_ids")}
    grids = {k: torch.cat([first[k], inputs[k]]) for k in media if k.endswith("grid_thw")}
    if grids and hasattr(model.model, "get_rope_index"):
        kinds = (whole == zoo.IMAGE).long() + 2 * (whole == zoo.VIDEO).long()
        positions, _ = model.model.get_rope_index(whole, kinds, **grids)
        media["mm_token_type_ids"] = kinds[:, past:]
    else:
        positions = torch.arange(whole.shape[1])[None]
    step = {"input_ids": whole[:, past:], "position_ids": positions[..., past:], **media}
    answer, seen = [], []
    for _ in range(new):
        with torch.no_grad():
            mask = torch.ones(1, cache.get_seq_length() + step["input_ids"].shape[1], dtype=torch.long)
            out = model(**step, attention_mask=mask, past_key_values=cache, use_cache=True)
        seen.append(out.logits[0, -1])
        answer.append(int(seen[-1].argmax()))
        step = {
            "input_ids": torch.tensor([answer[-1:]]),
            "position_ids": step["position_ids"].amax() + 1 + 0 * positions[..., :1],
        }
    return answer, torch.stack(seen)


@families
def test_kept_tokens_keep_their_positions(family):
    """Rotary tables of a short layer are rows of the full ones, also where positions have three parts."""
    model, sample, seen = family.model(), family.samples()[1], []

    def watch(layer, args, kwargs):
        seen.append(kwargs["position_embeddings"])

    layers = model.get_decoder().layers
    with pruned(model, family) as pruning:
        hooks = [layers[i].register_forward_pre_hook(watch, with_kwargs=True) for i in (0, family.layer)]
        with torch.no_grad():
            model(**zoo.one(sample))
        for hook in hooks:
            hook.remove()
    ids = zoo.one(sample)["input_ids"][0]
    visual = ((ids == zoo.IMAGE) | (ids == zoo.VIDEO)).nonzero()[:, 0]
    text = [i for i in range(len(ids)) if i not in visual.tolist()]
    stay = sorted(text + visual[pruning.records[0].keep_indices].tolist())
    (full, _), (short, _) = seen
    assert torch.equal(full.expand(1, -1, -1)[:, stay], short)


@families
def test_beams(family):
    """Beams of a batch whose samples have pictures of different sizes."""
    if ENCODES_FIRST not in inspect.signature(family.model().forward).parameters:
        pytest.skip("this transformers expands pictures of unequal samples wrongly for beams")
    samples, model = family.samples()[:2], family.model()
    with pruned(model, family) as pruning:
        together = model.generate(**zoo.collate(samples), num_beams=2, max_new_tokens=3, pad_token_id=0)[:, -3:]
        kept = [record.keep_indices for record in pruning.records]
        pruning.clear()
        for row, sample in enumerate(samples):
            alone = model.generate(**zoo.one(sample), num_beams=2, max_new_tokens=3, pad_token_id=0)[:, -3:]
            assert torch.equal(together[row : row + 1], alone)
    assert kept == [record.keep_indices for record in pruning.records]


# Layouts


@every
def test_layouts_are_the_same_however_the_model_is_called(family, record_property):
    """generate encodes pictures before the first pass, a forward call within it."""
    model, samples = family.model(), family.samples()
    samples = samples if family.ours else samples[-2:-1]
    inputs = zoo.collate(samples)
    with pruned(model, family) as pruning:
        with torch.no_grad():
            model(**inputs)
        generate(model, inputs, max_new_tokens=1)
    direct, generated = pruning.records[: len(samples)], pruning.records[len(samples) :]
    record_property("class", type(model).__name__)
    record_property("layer", dissect(model).first_layer)
    record_property("layouts", layouts(direct[len(samples) // 3], family.video is not None))
    for one, other in zip(direct, generated, strict=True):
        fields = ("keep_indices", "image", "view", "row", "column", "grids", "N", "K")
        assert all(getattr(one, field) == getattr(other, field) for field in fields)


def layouts(record, second_is_video):
    """What the record of the sample with two pictures, the second one a video perhaps, knows about them."""
    first, second = ([grid for grid in grids if min(grid)] for grids in record.grids)
    pictures = ["", "grid", "tiles"][min(len(first), 2)]
    newlines = "newlines" if any(r >= 0 > c for r, c in zip(record.row, record.column, strict=True)) else ""
    return (
        ", ".join(filter(None, [pictures, newlines, "frames" if second_is_video and second else ""])) or "tokens only"
    )


@each(tiled)
def test_tiled_pictures_have_two_views(family):
    model, sample = family.model(), family.samples()[0]
    with mob.prune(model, K=69, layer=family.layer) as pruning, torch.no_grad():
        model(**zoo.one(sample))
    (record,) = pruning.records
    assert record.grids == [[[4, 4], [6, 8]]] and record.N == 70
    whole = [(0, r, c) for r in range(4) for c in range(4)] + [(1, r, c) for r in range(6) for c in [*range(8), -1]]
    places = list(zip(record.view, record.row, record.column, strict=True))
    assert places == [whole[i] for i in record.keep_indices]


@each(tiled)
def test_newlines_can_be_protected(family):
    model, samples = family.model(), family.samples()
    with pruned(model, family, keep_newlines=True) as pruning, torch.no_grad():
        cache = model(**zoo.one(samples[0]), use_cache=True).past_key_values
    (record,) = pruning.records
    assert (record.N, record.K) == (64, K) and -1 not in record.column
    texts = 6
    assert cache.get_seq_length(0) == 70 + texts and cache.get_seq_length(family.layer) == K + 6 + texts
    with mob.prune(model, K=64, layer=family.layer, keep_newlines=True), torch.no_grad():
        everything = model(**zoo.one(samples[0])).logits
    with torch.no_grad():
        assert torch.equal(everything, model(**zoo.one(samples[0])).logits)


@each(qwens)
def test_frames_and_pictures_of_a_qwen(family):
    model, sample = family.model(), family.samples()[1]
    with mob.prune(model, K=0.5, layer=family.layer) as pruning, torch.no_grad():
        model(**zoo.one(sample))
    (record,) = pruning.records
    assert record.grids == [[[2, 5]], [[2, 3], [2, 3]]] and (record.N, record.K) == (22, 11)
    assert record.image.count(0) == 5 and record.image.count(1) == 6  # in proportion to 10 and 12


@each(qwens[-1:])
def test_deepstack_needs_its_first_layers_whole(family):
    with pytest.raises(ValueError, match="can be pruned at layers 3 to 4"):
        mob.prune(family.model(), K=4, layer=2)
    with mob.prune(family.model(), K=4) as pruning:
        pruning.model(**zoo.one(family.samples()[0]))
    assert pruning.records[0].layer == 3


@every
def test_nothing_is_left_behind(family):
    model, inputs = family.model(), zoo.collate(family.samples())
    with torch.no_grad():
        plain = model(**inputs).logits
        before = set(model.model.__dict__)
        with pruned(model, family):
            model(**inputs)
        assert set(model.model.__dict__) == before
        assert torch.equal(model(**inputs).logits, plain)
