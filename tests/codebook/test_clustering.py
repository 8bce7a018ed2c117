"""Clustering, the filters and duplicates against slow versions; building a codebook from made-up measurements."""

from __future__ import annotations

import json

import pytest
import torch

import zoo
from codebook import books
from redundancy_codebook.building import PRESETS, Recipe, build, with_options
from redundancy_codebook.clustering import (
    _NOISE,
    dpc_knn,
    members,
    recurring,
    within_picture,
    without_duplicates,
    without_similar,
)
from redundancy_codebook.runs import VALUES, open_run, writing


def blobs(seed: int, count: int, width: int = 6, groups: int = 4) -> torch.Tensor:
    middles = zoo.noise(groups, width, seed=seed) * 4
    return (middles[torch.arange(count) % groups] + zoo.noise(count, width, seed=seed + 1)).float()


@pytest.mark.parametrize("seed", range(12))
def test_dpc_knn_equals_the_slow_one(seed):
    count, clusters, neighbours = 5 + 4 * seed, 1 + seed % 6, 1 + seed % 7
    rows = blobs(seed, count)
    noise = (torch.rand(count, generator=torch.Generator().manual_seed(seed)) * _NOISE).tolist()
    found = dpc_knn(rows, clusters, neighbours=neighbours, seed=seed)
    assert found.labels.tolist() == books.slow_dpc_knn(rows, clusters, neighbours, noise)
    assert found.labels[found.centres].tolist() == list(range(clusters))


def test_clusters_are_seeded_and_float32():
    rows = (torch.arange(40) % 2).half()[:, None].expand(-1, 8)  # two places, nothing but ties
    found = [dpc_knn(rows, 2, seed=seed) for seed in (3, 3, 4)]
    assert torch.equal(found[0].centres, found[1].centres) and not torch.equal(found[0].centres, found[2].centres)
    assert all(len(set(one.labels[half::2].tolist())) == 1 for one in found for half in (0, 1))
    assert len(dpc_knn(rows[:3], 5).centres) == 3 and len(dpc_knn(rows[:0], 5).labels) == 0
    with pytest.raises(ValueError, match="at least 1"):
        dpc_knn(rows, 0)


def test_distances_in_parts_are_the_same(monkeypatch):
    from redundancy_codebook import clustering

    rows = blobs(1, 90)
    whole = dpc_knn(rows, 6)
    monkeypatch.setattr(clustering, "_CHUNK", 7)
    assert torch.equal(dpc_knn(rows, 6).labels, whole.labels)


def test_blobs_are_found():
    rows = blobs(5, 80) + 20 * torch.eye(6)[torch.arange(80) % 4]
    labels = dpc_knn(rows, 4).labels
    assert all(len(set(labels[group::4].tolist())) == 1 for group in range(4)) and len(set(labels.tolist())) == 4


def test_large_clusters_of_a_picture_do_not_count():
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    flagged = torch.tensor([True, False, True, True, True, False])
    assert within_picture(flagged, labels, 2).tolist() == [False, False, False, True, True, False]


@pytest.mark.parametrize("seed", range(20))
def test_recurrence_equals_the_slow_one(seed):
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 6, (60,), generator=draw)
    pictures = torch.randint(0, 9, (60,), generator=draw)
    for least in (0, 3, 5, 8):
        chosen = recurring(labels, pictures, least)
        assert chosen == books.slow_recurring(labels.tolist(), pictures.tolist(), least)
        expected = [i for cluster in chosen for i in range(60) if labels[i] == cluster]
        assert members(labels, chosen).tolist() == expected


def test_the_released_listings_give_as_many_rows_in_their_order():
    """Sizes and picture counts of the published clusters: two are kept of each book, the larger one first."""
    draw = torch.Generator().manual_seed(0)
    for sizes, least, expected in (
        # cluster: (tokens, pictures); of the others what is known is that they have fewer pictures than asked for
        ({13: (256, 131), 34: (198, 98), 7: (300, 59), 2: (629, 59)}, 64, {13: 256, 34: 198}),
        ({0: (26, 22), 14: (19, 17), 3: (155, 16)}, 16, {0: 26, 14: 19}),
    ):
        rows = [(c, i % pictures) for c, (tokens, pictures) in sizes.items() for i in range(tokens)]
        first = [rows.index((c, 0)) for c in sizes]  # their first tokens keep their order, the rest is mixed
        rest = [i for i in torch.randperm(len(rows), generator=draw).tolist() if i not in first]
        listing = [rows[i] for i in [*first, *rest]]
        labels, pictures = torch.tensor(listing).T
        chosen = recurring(labels, pictures, least)
        assert chosen == list(expected)
        kept = [listing[i] for i in members(labels, chosen).tolist()]
        assert [c for c, _ in kept] == [c for c, count in expected.items() for _ in range(count)]
        for c in expected:
            assert [row for row in kept if row[0] == c] == [row for row in listing if row[0] == c]


def test_duplicates():
    rows = zoo.noise(6, 5).half()[[0, 1, 0, 2, 2, 3]]
    assert without_duplicates(rows).tolist() == [0, 1, 3, 5]
    kept = without_similar(rows, 0.999)
    assert kept.rows.tolist() == [0, 1, 3, 5] and kept.change < 1e-3


@pytest.mark.parametrize("cosine", [0.99, 0.9, 0.5])
def test_dropping_similar_ones_changes_scores_no_more_than_it_says(cosine):
    rows = blobs(2, 60, width=8)
    kept = without_similar(rows, cosine)
    units = torch.nn.functional.normalize(rows.double(), dim=1)
    left = units[kept.rows]
    among = left @ left.T - torch.eye(len(left)) * 2
    assert float(among.max()) < cosine and 0 < len(left) < 60
    assert bool(((units @ left.T).amax(1) >= cosine - 1e-6).all())
    tokens = torch.nn.functional.normalize(zoo.noise(500, 8, seed=9), dim=1)
    lost = (tokens @ units.T).amax(1) - (tokens @ left.T).amax(1)
    assert 0 <= float(lost.max()) <= kept.change


# ---------------------------------------------------------------------------------------------------------------
# From measurements to a codebook


def made_up(folder, pictures: int = 12):
    """Nine tokens a picture: three of one kind, redundant everywhere; two redundant of the picture's own; four not."""
    common, width = zoo.noise(1, 8, seed=100)[0], 8
    manifest = {
        "identity": {"D": width, "grid": [3, 3], "model": "made-up"},
        "settings": {},
        "features_dtype": "float32",
    }
    with writing(folder, manifest) as writer:
        for number in range(pictures):
            rows = zoo.noise(9, width, seed=number) * 3
            rows[:3] = common * 5 + zoo.noise(3, width, seed=50 + number) * 0.05
            rows[3:5] = rows[3] + zoo.noise(2, width, seed=80 + number) * 0.05
            low = torch.tensor([0.05] * 5 + [0.5] * 4) + number * 1e-4
            values = dict.fromkeys(VALUES, low * 0.01) | {"p_top1": low}
            writer.add({"picture": f"p{number}", "domain": "made-up"}, list(range(9)), values, rows)
    return open_run(folder), common


def test_only_what_recurs_becomes_a_prototype(tmp_path):
    run, common = made_up(tmp_path)
    numbers = {"p_max": 0.2, "J_max": 0.02, "clusters": 13, "min_pictures": 5, "picture_largest": 3, "neighbours": 2}
    recipe = Recipe(**numbers)
    book, stages = build(run, recipe)
    assert int(stages.redundant.sum()) == 60 and len(book) == 36
    assert bool((torch.cosine_similarity(book.prototypes.double(), common[None]) > 0.99).all())
    assert book.metadata["pictures"] == [f"p{i}" for i in range(12)] and len(book.source_index.unique()) == 12
    assert book.metadata["build"]["kept_clusters"] == list(dict.fromkeys(book.cluster_id.tolist()))
    again, _ = build(open_run(tmp_path), recipe)
    assert torch.equal(again.prototypes, book.prototypes) and again.metadata == book.metadata
    few, _ = build(run, Recipe(**numbers, dedup=0.99))
    assert len(few) == 1 and 0 < few.metadata["build"]["largest_change_by_dedup"] < 0.05


def test_quantiles_and_units_of_thresholds(tmp_path):
    run, _ = made_up(tmp_path)
    _, stages = build(run, Recipe(p_quantile=5 / 9, J_quantile=5 / 9, picture_largest=3, min_pictures=2, clusters=25))
    assert int(stages.redundant.sum()) == 60
    assert torch.allclose(run.score("jsd", 2.0, 3.0), 2 * run.values("local_jsd") + 3 * run.values("global_jsd"))
    with pytest.raises(ValueError, match="use one of"):
        run.score("js")


def test_each_step_says_what_to_change(tmp_path):
    run, _ = made_up(tmp_path)
    plain = {"p_max": 0.2, "J_max": 0.02, "picture_largest": 3}
    for change, message in (
        ({"p_max": 0.001}, "raise p_max"),
        ({"picture_clusters": 1, "picture_largest": 1}, "raise picture_largest"),
        ({"min_pictures": 100}, "lower min_pictures"),
    ):
        with pytest.raises(ValueError, match=message):
            build(run, Recipe(**plain | change))
    for wrong in ({"p_quantile": 0}, {"clusters": 0}, {"min_pictures": -1}, {"dedup": 1.5}, {"divergence": "kl"}):
        with pytest.raises(ValueError):
            Recipe(**wrong)


def test_presets():
    assert (PRESETS["llava-1.5"].p_max, PRESETS["llava-1.5"].J_max) == (0.15, 2e-3)
    own = with_options("llava-onevision", p_quantile=0.2, clusters=7, seed=None)
    assert own.p_max is None and own.J_max == 1.8e-3 and (own.clusters, own.picture_largest) == (7, 3)
    with pytest.raises(ValueError, match="use one of"):
        with_options("llava")


def test_a_run_of_another_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        open_run(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        open_run(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"format": "x"}))
    with pytest.raises(ValueError, match="not of format"):
        open_run(tmp_path)
