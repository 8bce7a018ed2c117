"""Generation and training with pruning equal a decoder that recomputes everything, without cache or padding."""

from __future__ import annotations

import inspect

import pytest
import torch
from transformers import LlavaForConditionalGeneration

import mob
from mob.budget import Budget
from mob.pruner import Stage
from reference import SlowLlava
from tiny import IMAGE, NONE, ONE, PATCHES, TWO, batch, llava, pictures, prompt

K, K_P, FOLD = 6, 3, 2
NEW = 5
SAMPLES = (ONE, TWO, NONE)
IMAGES = (1, 2, 0)  # pictures of each sample

EXACT = pytest.param(torch.float64, "sdpa", 1e-6, id="float64-sdpa")
EAGER = pytest.param(torch.float32, "eager", 1e-4, id="float32-eager")


def reference(model, layer=2, keep=K, per_picture=True):
    return SlowLlava(model.double(), lambda n: (keep, K_P, FOLD), layer, per_picture=PATCHES if per_picture else None)


def per_sample_pixels(pixels):
    """Split a stack of pictures among the samples, None for a sample without one."""
    split = pixels.double().split(list(IMAGES))
    return [part if len(part) else None for part in split]


def slow_answers(model, pixels, layer=2, new=NEW, **options):
    """Reference answers and logits, sample by sample."""
    slow = reference(model, layer, **options)
    results = [slow.generate([(ids, px, new)]) for ids, px in zip(SAMPLES, per_sample_pixels(pixels), strict=True)]
    return [answers[0] for answers, _ in results], torch.stack([logits[0] for _, logits in results])


def generate(model, inputs, pixels, **options):
    options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, **options}
    if pixels is not None:
        options["pixel_values"] = pixels
    out = model.generate(**inputs, return_dict_in_generate=True, output_logits=True, **options)
    return out, out.sequences[:, inputs["input_ids"].shape[1] :]


@pytest.mark.parametrize("layer", [1, 2, 4])
@pytest.mark.parametrize("dtype, attention, tolerance", [EXACT, EAGER])
def test_generate_equals_the_reference(dtype, attention, tolerance, layer):
    model, pixels = llava(dtype, attention), pictures(3, dtype)
    with mob.prune(model, K=K, K_p=K_P, k=FOLD, layer=layer) as pruning:
        out, answers = generate(model, batch(*SAMPLES), pixels)
    slow, logits = slow_answers(model, pixels, layer)
    assert answers.tolist() == slow
    got = torch.stack(out.logits, 1)
    assert (got.double() - logits.float().double()).abs().max() <= tolerance * max(1.0, logits.abs().max())
    assert [record.N for record in pruning.records] == [PATCHES, 2 * PATCHES, 0]
    assert [len(record.keep_indices) for record in pruning.records] == [K, K, 0]


def test_one_budget_over_all_pictures():
    model, pixels = llava(), pictures(3)
    with mob.prune(model, K=K, K_p=K_P, k=FOLD, per_picture=False) as pruning:
        out, answers = generate(model, batch(*SAMPLES), pixels)
    slow, logits = slow_answers(model, pixels, per_picture=False)
    assert answers.tolist() == slow
    assert (torch.stack(out.logits, 1) - logits.float()).abs().max() < 1e-5
    with mob.prune(model, K=K, K_p=K_P, k=FOLD) as each:
        generate(model, batch(*SAMPLES), pixels)
    both, shared = each.records[1], pruning.records[1]
    assert sorted(both.image) == [0, 0, 0, 1, 1, 1] and both.keep_indices != shared.keep_indices
    assert each.records[0].keep_indices == pruning.records[0].keep_indices  # one picture: no difference


def test_short_layers_really_are_short():
    model, pixels = llava(), pictures(3)
    with mob.prune(model, K=K, K_p=K_P, k=FOLD):
        cache = model(**batch(*SAMPLES), pixel_values=pixels, use_cache=True).past_key_values
    full = max(map(len, SAMPLES))
    texts = [sum(token != IMAGE for token in s) for s in SAMPLES]
    short = max(t + min(K, len(s) - t) for t, s in zip(texts, SAMPLES, strict=True))
    assert [cache.get_seq_length(i) for i in range(5)] == [full, full, short, short, short]


def test_pruning_changes_the_answer():
    """Guards the whole file: if nothing were dropped, the comparisons above would hold too."""
    model, pixels = llava(), pictures(3)
    plain = model(**batch(*SAMPLES), pixel_values=pixels).logits
    with mob.prune(model, K=K):
        pruned = model(**batch(*SAMPLES), pixel_values=pixels).logits
    changed = (plain[:, -1] - pruned[:, -1]).abs().amax(-1)
    assert changed[0] > 1e-2 and changed[1] > 1e-2 and changed[2] < 1e-12


@pytest.mark.parametrize("keep", [2 * PATCHES, 2 * PATCHES + 1, 10_000])
def test_keeping_everything_is_bit_identical(keep):
    model, pixels = llava(torch.float32), pictures(3, torch.float32)
    plain, plain_answers = generate(model, batch(*SAMPLES), pixels)
    with mob.prune(model, K=keep) as pruning:
        same, same_answers = generate(model, batch(*SAMPLES), pixels)
    assert torch.equal(torch.stack(plain.logits), torch.stack(same.logits))
    assert torch.equal(plain_answers, same_answers)
    assert [record.K for record in pruning.records] == [PATCHES, 2 * PATCHES, 0]


@pytest.mark.parametrize("pad", ["left", "right"])
def test_a_batch_equals_its_samples(pad):
    model, pixels = llava(), pictures(3)
    inputs = batch(*SAMPLES, pad=pad)
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)
    with mob.prune(model, K=K) as pruning:
        together = model(**inputs, position_ids=positions, pixel_values=pixels).logits
        for row, (ids, px) in enumerate(zip(SAMPLES, per_sample_pixels(pixels), strict=True)):
            alone = model(input_ids=torch.tensor([ids]), pixel_values=px).logits[0]
            assert torch.allclose(together[row][inputs["attention_mask"][row].bool()], alone, atol=1e-10)
    batched, singles = pruning.records[:3], pruning.records[3:]
    assert [r.keep_indices for r in batched] == [r.keep_indices for r in singles]


def test_unpadded_single_sample_without_mask():
    """No padding means no mask at all under SDPA: the short pass must stay causal."""
    model, pixels = llava(), pictures(1)
    ids = torch.tensor([ONE])
    with mob.prune(model, K=K, K_p=K_P, k=FOLD):
        logits = model(input_ids=ids, pixel_values=pixels).logits[0]
    slow = reference(model).run(ONE, pixels, [0], [len(ONE)])
    assert (logits - slow).abs().max() < 1e-9


def test_equal_lengths_that_become_unequal():
    """Stock SDPA needs no mask for this batch; dropping different numbers of tokens makes one necessary."""
    model, pixels = llava(), pictures(1)
    text = prompt(1, *range(20, 20 + len(ONE) - 1))
    inputs = {"input_ids": torch.tensor([ONE, text])}
    with mob.prune(model, K=K, K_p=K_P, k=FOLD):
        out, answers = generate(model, inputs, pixels)
    slow = reference(model)
    for row, (ids, px) in enumerate(((ONE, pixels), (text, None))):
        expected, logits = slow.generate([(ids, px, NEW)])
        assert answers[row].tolist() == expected[0]
        assert (torch.stack(out.logits, 1)[row] - logits[0].float()).abs().max() < 1e-5


# Before it expanded the encoder's outputs, generate repeated pictures in an order that fits one picture a sample only.
EXPANDS = "mm_encoder_outputs" in inspect.signature(LlavaForConditionalGeneration.forward).parameters


@pytest.mark.parametrize(
    "samples, images",
    [
        pytest.param((ONE, prompt(1, "image", 30), NONE), (1, 1, 0), id="one-each"),
        pytest.param(
            SAMPLES, IMAGES, id="uneven", marks=pytest.mark.skipif(not EXPANDS, reason="wrong in stock transformers")
        ),
    ],
)
def test_beams(samples, images):
    """The score that beam search reports is the log-probability that the reference gives the same sequence."""
    model, pixels = llava(), pictures(sum(images))
    with mob.prune(model, K=K, K_p=K_P, k=FOLD):
        out, answers = generate(model, batch(*samples), pixels, num_beams=3, output_scores=True)
    slow = reference(model)
    for row, (ids, px) in enumerate(zip(samples, pixels.split(list(images)), strict=True)):
        answer = answers[row].tolist()
        logits = slow.run(ids + answer, px, [0], [len(ids)])[len(ids) - 1 : -1]
        score = logits.log_softmax(-1)[range(NEW), answer].sum() / NEW
        assert abs(float(out.sequences_scores[row]) - float(score)) < 1e-5


def test_sampling_with_a_seed():
    model, pixels = llava(), pictures(3)
    with mob.prune(model, K=K, K_p=K_P, k=FOLD):
        torch.manual_seed(7)
        _, answers = generate(model, batch(*SAMPLES), pixels, do_sample=True, temperature=3.0, top_k=0, top_p=1.0)
    slow, sequences = reference(model), [list(ids) for ids in SAMPLES]
    torch.manual_seed(7)
    for _ in range(NEW):
        rows = []
        for ids, px, sequence in zip(SAMPLES, per_sample_pixels(pixels), sequences, strict=True):
            rows.append(slow.run(sequence, px, [0], [len(ids)])[-1])
        drawn = torch.multinomial((torch.stack(rows).float() / 3.0).softmax(-1), 1)[:, 0].tolist()
        sequences = [sequence + [token] for sequence, token in zip(sequences, drawn, strict=True)]
    assert answers.tolist() == [s[len(ids) :] for s, ids in zip(sequences, SAMPLES, strict=True)]


@pytest.mark.parametrize("second", ["picture", "text"])
@pytest.mark.parametrize("dtype, attention, tolerance", [EXACT, EAGER])
def test_second_turn(dtype, attention, tolerance, second):
    """The cache of turn one goes on: layer 0 full, later layers short; turn two brings a picture, or only text."""
    model, pixels = llava(dtype, attention), pictures(2, dtype)
    more = prompt(42, "image", 43, 44) if second == "picture" else prompt(42, 43, 44, 45)
    new_pixels = pixels[1:] if second == "picture" else None
    with mob.prune(model, K=K, K_p=K_P, k=FOLD) as pruning:
        first, answer = generate(model, {"input_ids": torch.tensor([ONE])}, pixels[:1])
        ids = torch.cat([first.sequences, torch.tensor([more])], 1)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        out, last = generate(model, inputs, new_pixels, past_key_values=first.past_key_values)
    turns = [(ONE, pixels[:1].double(), NEW), (more, None if new_pixels is None else new_pixels.double(), NEW)]
    answers, logits = reference(model).generate(turns)
    assert [answer[0].tolist(), last[0].tolist()] == [answers[0], answers[1]]
    got = torch.stack(out.logits, 1)[0].double()
    assert (got - logits[1].float().double()).abs().max() <= tolerance * max(1.0, logits[1].abs().max())
    assert len(pruning.records) == (2 if second == "picture" else 1)


def test_second_turn_of_a_batch_is_padded_in_the_middle():
    model, pixels = llava(), pictures(4)
    firsts, seconds = (ONE, prompt(1, "image", 30)), (prompt(42, "image", 43, 44, 45), prompt(46, "image", 47))
    with mob.prune(model, K=K, K_p=K_P, k=FOLD):
        inputs = batch(*firsts)
        first, answers = generate(model, inputs, pixels[:2])
        more = batch(*seconds)
        ids = torch.cat([first.sequences, more["input_ids"]], 1)
        ones = torch.ones_like(answers)
        mask = torch.cat([inputs["attention_mask"], ones, more["attention_mask"]], 1)
        inputs = {"input_ids": ids, "attention_mask": mask}
        out, last = generate(model, inputs, pixels[2:], past_key_values=first.past_key_values)
    slow = reference(model)
    for row in range(2):
        turns = [(firsts[row], pixels[row : row + 1], NEW), (seconds[row], pixels[row + 2 : row + 3], NEW)]
        expected, logits = slow.generate(turns)
        assert [answers[row].tolist(), last[row].tolist()] == expected
        assert (torch.stack(out.logits, 1)[row] - logits[1].float()).abs().max() < 1e-5


class TwoStages(mob.Pruning):
    """A rule of two stages, as PyramidDrop is: K tokens from layer 2 on, fewer from layer 4 on."""

    def _stages(self, settings, spans):
        (first,) = super()._stages(settings, spans)
        after = [Budget(N=b.K, K=min(b.K, 3), K_p=2, k=1) for b in first.budgets]
        return first, Stage(4, first.rule, after)


@pytest.mark.parametrize("static", [False, True])
def test_two_stages_and_two_turns(static):
    model, pixels = llava(layers=6), pictures(2)
    more = prompt(42, "image", 43, 44)
    with TwoStages(model, mob.MoBConfig(K=K, K_p=K_P, k=FOLD)):
        options = {"cache_implementation": "static", "disable_compile": True} if static else {}
        first, _ = generate(model, {"input_ids": torch.tensor([ONE])}, pixels[:1], **options)
        if static:
            answers = [first.sequences[0, len(ONE) :].tolist()]
        else:
            lengths = [first.past_key_values.get_seq_length(i) for i in range(6)]
            whole = len(ONE) + NEW - 1
            assert lengths == [whole] * 2 + [whole - PATCHES + K] * 2 + [whole - PATCHES + 3] * 2
            ids = torch.cat([first.sequences, torch.tensor([more])], 1)
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            second, last = generate(model, inputs, pixels[1:], past_key_values=first.past_key_values)
            answers = [first.sequences[0, len(ONE) :].tolist(), last[0].tolist()]
    slow = SlowLlava(model, lambda n: (K, K_P, FOLD), 2, later={4: lambda n: (3, 2, 1)})
    turns = [(ONE, pixels[:1], NEW), (more, pixels[1:], NEW)][: len(answers)]
    expected, logits = slow.generate(turns)
    assert answers == expected
    last = first if static else second
    assert (torch.stack(last.logits, 1)[0] - logits[-1].float()).abs().max() < 1e-5


def test_static_cache():
    model, pixels = llava(), pictures(3)
    with mob.prune(model, K=K, K_p=K_P, k=FOLD):
        out, answers = generate(model, batch(*SAMPLES), pixels, cache_implementation="static", disable_compile=True)
    slow, logits = slow_answers(model, pixels)
    assert answers.tolist() == slow
    assert (torch.stack(out.logits, 1) - logits.float()).abs().max() < 1e-5


def test_labels_and_loss():
    """Loss equals the reference's, and the tokens to be predicted do not guide the selection."""
    model, pixels = llava(), pictures(3)
    answers = ([50, 51], [52, 53, 54], [55])
    inputs = batch(*(s + a for s, a in zip(SAMPLES, answers, strict=True)), pad="right")
    labels = torch.full_like(inputs["input_ids"], -100)
    for row, (ids, answer) in enumerate(zip(SAMPLES, answers, strict=True)):
        labels[row, len(ids) : len(ids) + len(answer)] = torch.tensor(answer)
    with mob.prune(model, K=K, K_p=K_P, k=FOLD) as pruning:
        out = model(**inputs, pixel_values=pixels, labels=labels)
    slow, losses, kept = reference(model), [], []
    for ids, answer, px in zip(SAMPLES, answers, per_sample_pixels(pixels), strict=True):
        logits = slow.run(ids + answer, px, [0], [len(ids)])
        kept += slow.kept
        log_probabilities = logits[len(ids) - 1 : -1].log_softmax(-1)
        losses.append(-log_probabilities[range(len(answer)), answer])
    assert [record.keep_indices for record in pruning.records] == kept
    assert abs(out.loss.item() - torch.cat(losses).mean().item()) < 1e-5
    assert out.logits.shape[:2] == inputs["input_ids"].shape


def test_gradient_checkpointing_selects_once_and_keeps_gradients():
    model, pixels = llava(), pictures(3)
    inputs = batch(*SAMPLES)
    labels = torch.where(inputs["input_ids"] > 29, inputs["input_ids"], -100)
    model.train()

    def gradients():
        model.zero_grad()
        with mob.prune(model, K=K) as pruning:
            model(**inputs, pixel_values=pixels, labels=labels, use_cache=False).loss.backward()
        assert len(pruning.records) == 3
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain = gradients()
    model.gradient_checkpointing_enable()
    checkpointed = gradients()
    assert len(plain) == len(checkpointed) > 0
    assert all(torch.equal(a, b) for a, b in zip(plain, checkpointed, strict=True))


def test_hidden_states_come_back_at_full_length():
    model, pixels = llava(), pictures(3)
    inputs = batch(*SAMPLES)
    with mob.prune(model, K=K):
        out = model(**inputs, pixel_values=pixels, output_hidden_states=True)
    assert {h.shape[:2] for h in out.hidden_states} == {inputs["input_ids"].shape}


def test_inputs_embeds_instead_of_ids():
    model, pixels = llava(), pictures(1)
    ids = torch.tensor([ONE])
    with mob.prune(model, K=K, K_p=K_P, k=FOLD):
        by_ids = model(input_ids=ids, pixel_values=pixels).logits
        by_embeddings = model(inputs_embeds=model.get_input_embeddings()(ids), pixel_values=pixels).logits
    assert torch.equal(by_ids, by_embeddings)
