"""The experiments against slow versions, on tiny random models of every family."""

from __future__ import annotations

import pytest
import torch

import mob
import zoo
from codebook import books
from redundancy_codebook import experiment
from redundancy_codebook.divergence import divergences, p_top1
from redundancy_codebook.experiment import Options, Reader, measure, replacement
from redundancy_codebook.models import base_view, encode, identity, load, newline, split_prompt
from redundancy_codebook.sampling import centres, choose, default_ranks, parse_ranks, window

EVERY = list(range(16))


@pytest.fixture(scope="module", params=books.FAMILIES)
def one(request):
    return books.subject(request.param)


@pytest.fixture(scope="module")
def llava():
    return books.subject("llava")


def reader(one, **more):
    return Reader(one.model, books.BEFORE, books.AFTER, newline(one), **more)


def close(a, b, tolerance=1e-9):
    assert float((a - b).abs().max()) < tolerance


def slow(one, features, missing, repeat=1):
    """Every measurement of every patch, one input at a time, without a cache."""
    end = newline(one)
    read = lambda visual: books.slow_logits(one.model, visual, end)  # noqa: E731
    whole, rows = read(features), []
    for index in EVERY:
        around = books.slow_window(index)
        without = [missing if i == index else features[i] for i in around if i != index or missing is not None]
        ablated = [missing if i in around else features[i] for i in EVERY if i not in around or missing is not None]
        alone = books.slow_p_top1(read(features[[index] * repeat]), 50)
        local = books.slow_divergences(read(features[around]), read(torch.stack(without)), 10)
        everywhere = books.slow_divergences(whole, read(torch.stack(ablated)), 10)
        rows.append([alone, *local, *everywhere])
    return torch.tensor(rows, dtype=torch.float64).T


@pytest.mark.parametrize("ablation", experiment.ABLATIONS)
def test_every_measurement_equals_the_slow_one(one, ablation):
    features, quick = books.features(one), reader(one)
    missing = replacement(ablation, features, quick.embed([0])[0])
    found = measure(quick, features, books.GRID, EVERY, missing)
    assert list(found) == [
        "p_top1",
        "local_legacy_mean_reverse",
        "local_jsd",
        "global_legacy_mean_reverse",
        "global_jsd",
    ]
    close(torch.stack(list(found.values())), slow(one, features, missing))
    assert all(float(value.std()) > 0 for value in found.values())


@pytest.mark.parametrize("tokens", [1, 40, 100])
def test_batches_do_not_matter(one, tokens):
    features = books.features(one, seed=1)
    pad = reader(one).embed([0])[0]
    expected = measure(reader(one), features, books.GRID, EVERY, pad)
    found = measure(reader(one, tokens_per_pass=tokens), features, books.GRID, EVERY[::-1], pad)
    for name, value in expected.items():
        close(value, found[name].flip(0))


def test_cached_beginnings_equal_a_full_recomputation(llava):
    features, quick = books.features(llava), reader(llava)
    logits, states = quick.whole(features)
    close(logits, books.slow_logits(llava.model, features, None))
    for start in range(17):
        if start < 16:
            part = quick.logits(features[start:][None], states.upto(len(books.BEFORE) + start))[0]
            close(part, logits)
    assert quick.prefix.length == len(books.BEFORE) and states.length == len(books.BEFORE) + 16


def test_a_token_alone_may_be_repeated(llava):
    features, quick = books.features(llava), reader(llava)
    pad = quick.embed([0])[0]
    found = measure(quick, features, books.GRID, EVERY, pad, Options(repeat=3))
    close(found["p_top1"], slow(llava, features, pad, repeat=3)[0])


def test_an_attached_pruning_does_not_act_on_measurements(llava):
    features = books.features(llava)
    pad = reader(llava).embed([0])[0]
    expected = measure(reader(llava), features, books.GRID, EVERY, pad)
    with mob.prune(llava.model, K=3):
        found = measure(reader(llava), books.features(llava), books.GRID, EVERY, pad)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_features_are_those_of_the_stock_model(one):
    """The base view of a picture with tiles is the first 16 tokens of the packed ones."""
    family = zoo.FAMILIES[one.name]
    part = family.picture(0)
    given = {key: value.to(torch.float64) if value.is_floating_point() else value for key, value in part.media.items()}
    with torch.no_grad():
        expected = one.model.get_image_features(**given, return_dict=True).pooler_output[0]
    pixels = given["pixel_values"]
    view = pixels[0, :1] if pixels.ndim == 5 else pixels[:1]
    seen = encode(one, view)
    close(seen.features, expected[:16], 1e-12)
    assert (seen.cls_cosine is None) == (one.name == "llava_onevision")


def test_models_without_a_cache_of_full_attention_are_refused():
    with pytest.raises(ValueError, match="cannot be measured"):
        books.subject("qwen2_vl")


def test_identity_knows_the_projector(llava):
    other = books.subject("llava")
    assert identity(llava) == identity(other)
    assert identity(books.subject("llava", torch.float32))["projector_sha256"] == identity(llava)["projector_sha256"]
    with torch.no_grad():
        other.model.model.multi_modal_projector.linear_2.weight[0, 0] += 1
    assert identity(llava)["projector_sha256"] != identity(other)["projector_sha256"]


def test_prompts_of_the_embedded_checkpoint():
    loaded = load(None, "cpu")
    before, after = split_prompt(loaded, "which shape is red ?")
    text = loaded.tokenizer.decode([*before, *after])
    assert text.startswith("<s> user:") and text.endswith("which shape is red? assistant:")
    own = split_prompt(loaded, "which shape ?", template="<s> <image> {question} :", answer="red")
    assert loaded.tokenizer.decode(own[1]) == "which shape?: red"
    for template in ("<s> {question}", "<s> <image><image> {question}", "{question} <image>"):
        with pytest.raises(ValueError, match="it needs one|before and after"):
            split_prompt(loaded, "shape ?", template=template)


def test_the_view_of_a_wide_picture(tmp_path):
    from PIL import Image

    loaded = load(None, "cpu")
    wide = Image.new("RGB", (224, 112), "red")
    assert base_view(loaded, wide).shape == (1, 3, 112, 112)
    loaded.model.config.image_aspect_ratio = "pad"
    padded, cropped = base_view(loaded, wide), base_view(loaded, wide, crop=True)
    assert not torch.equal(padded[..., 0, :], padded[..., 56, :]) and torch.equal(
        cropped[..., 0, :], cropped[..., 56, :]
    )


# ---------------------------------------------------------------------------------------------------------------
# Divergences


def test_legacy_is_the_mean_of_the_reversed_divergence():
    a, b = zoo.noise(200, 100, seed=1) * 2, zoo.noise(200, 100, seed=2) * 2
    found = divergences(a, b)
    expected = torch.tensor(
        [books.slow_divergences(x, y, 10) for x, y in zip(a, b, strict=True)], dtype=torch.float64
    ).T
    close(found["legacy_mean_reverse"], expected[0], 1e-12)
    close(found["jsd"], expected[1], 1e-12)


def test_equal_logits_and_shifts_have_no_divergence():
    a = zoo.noise(50, 100) * 3
    for value in divergences(a, a).values():
        assert float(value.abs().max()) < 1e-15
    for value in divergences(a.float(), a.float() + 7).values():
        assert float(value.abs().max()) < 1e-6
    close(divergences(a, a.flip(-1) + 5)["jsd"], divergences(a, a.flip(-1))["jsd"], 1e-12)


def test_ten_times_the_published_one_is_about_the_true_one():
    """Ratios grow with the divergence: 1.00 for small ones, about 1.04 at 0.02."""
    a = zoo.noise(500, 64, seed=3) * 2
    for scale, low, high in ((0.01, 0.999, 1.001), (0.4, 1.0, 1.1)):
        found = divergences(a, a + scale * zoo.noise(500, 64, seed=4))
        ratio = 10 * found["legacy_mean_reverse"].mean() / found["jsd"].mean()
        assert low <= float(ratio) <= high


def test_p_top1_looks_at_the_likeliest_only():
    logits = zoo.noise(20, 200) * 2
    close(p_top1(logits, 50), torch.tensor([books.slow_p_top1(row, 50) for row in logits], dtype=torch.float64), 1e-12)
    close(p_top1(logits, 500), logits.softmax(-1).amax(-1), 1e-12)
    assert p_top1(logits.half()).dtype == torch.float32


# ---------------------------------------------------------------------------------------------------------------
# Sampling and windows


@pytest.mark.parametrize("side", [3, 4, 14, 24, 27])
def test_every_window_has_nine_cells_with_the_patch_among_them(side):
    for index in range(side * side):
        cells = window(index, (side, side))
        assert len(set(cells)) == 9 and index in cells and cells == sorted(cells)
        rows, columns = {c // side for c in cells}, {c % side for c in cells}
        assert len(rows) == len(columns) == 3 and max(rows) - min(rows) == max(columns) - min(columns) == 2


def test_windows_of_the_published_grid_tile_it():
    chosen = choose("grid", (24, 24))
    assert len(chosen) == 64 and centres(24) == [1, 4, 7, 10, 13, 16, 19, 22]
    assert sorted(cell for index in chosen for cell in window(index, (24, 24))) == list(range(576))


@pytest.mark.parametrize("side", [3, 4, 14, 16, 27])
def test_windows_of_other_grids_cover_them(side):
    chosen = choose("grid", (side, side))
    assert len(chosen) == (-(-side // 3)) ** 2
    assert {cell for index in chosen for cell in window(index, (side, side))} == set(range(side * side))
    with pytest.raises(ValueError, match="smaller than"):
        choose("grid", (2, 2))


def test_ranks_are_indices_of_the_sorted_patches():
    cosine = torch.tensor([0.1, 0.5, 0.5, 0.9, 0.5, -1.0])
    assert choose("cls", (2, 3), cls_cosine=cosine, ranks=[1, 2, 3, 4, 6]) == [3, 1, 2, 4, 5]
    ranks = default_ranks(576)
    assert len(ranks) == 96 and ranks[:24] == list(range(1, 25)) and ranks[24:32] == list(range(37, 45))
    assert ranks[-8:] == list(range(569, 577))
    assert min(default_ranks(196)) == 1 and max(default_ranks(196)) == 196
    assert parse_ranks("1-3,7, 9-9") == [1, 2, 3, 7, 9]
    for text in ("", "a", "1-", "3-b"):
        with pytest.raises(ValueError, match="numbers and ranges"):
            parse_ranks(text)
    with pytest.raises(ValueError, match="no CLS token"):
        choose("cls", (2, 3))
    with pytest.raises(ValueError, match="between 1 and 6"):
        choose("cls", (2, 3), cls_cosine=cosine, ranks=[7])


def test_random_and_all():
    draws = [choose("random", (5, 5), count=6, seed=(0, number)) for number in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2] and len(set(draws[0])) == 6
    assert choose("random", (2, 2), count=9) == choose("all", (2, 2)) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="use one of"):
        choose("gird", (4, 4))
