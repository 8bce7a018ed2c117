"""The rule: scores, policies, files and whose codebook it is."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import save_file

import zoo
from codebook import books
from mob.budget import Budget, keep_count
from mob.codebook_file import Codebook, check_model, codebook_at, projector_sha256, read_codebook, units_at
from mob.covering import unit_rows
from mob.methods import SpanView, create
from mob.methods.codebook import VARIANTS, keep_below, keep_lowest, redundancy

WIDTH = 48


def book(rows: int = 7, **metadata) -> Codebook:
    return Codebook(zoo.noise(rows, WIDTH, seed=5).half(), metadata)


@pytest.fixture()
def path(tmp_path):
    file = tmp_path / "codebook.safetensors"
    book(model="zoo").save(file)
    return str(file)


def view(rows: torch.Tensor) -> SpanView:
    return SpanView(rows, rows[:, :0])


def whole(N: int, K: int | None = None) -> Budget:
    return Budget(N, N if K is None else K, 0, 1)


def test_scores_equal_the_formulas():
    visual, units = zoo.noise(3, 20, WIDTH), unit_rows(zoo.noise(7, WIDTH, seed=5))
    cosine = torch.nn.functional.normalize(visual, dim=-1) @ units.double().T
    single = cosine.softmax(-1).amax(-1)
    double = (cosine.softmax(-1) * cosine.softmax(-2)).amax(-1)
    for variant, expected in (
        ("cosine", cosine.amax(-1)),
        ("single_softmax", single.log()),
        ("double_softmax", double.log()),
    ):
        found = redundancy(visual, units, variant)
        assert found.dtype == torch.float32
        assert float((found - expected).abs().max()) < 1e-5
        assert torch.equal(found[1], redundancy(visual[1], units, variant))
    with pytest.raises(ValueError, match="use one of"):
        redundancy(visual, units, "triple_softmax")


def test_strange_rows_resemble_nothing():
    visual = zoo.noise(4, WIDTH).float()
    visual[0], visual[1, 3], visual[2, 0] = 0, float("nan"), float("inf")
    assert redundancy(visual, unit_rows(zoo.noise(7, WIDTH)))[:3].tolist() == [0, 0, 0]


def test_thresholds_nest_and_large_ones_keep_all():
    values = redundancy(zoo.noise(5, 60, WIDTH), unit_rows(zoo.noise(9, WIDTH, seed=1)))
    before = torch.zeros_like(values, dtype=torch.bool)
    for theta in torch.linspace(-0.2, 1, 25).tolist():
        now = keep_below(values, theta, 0)
        assert torch.equal(now, values < theta) and not bool((before & ~now).any())
        before = now
    assert bool(keep_below(values, float(values.max()) + 1e-6).all())
    assert not bool(keep_below(values, float(values.min()), 0)[values == values.min()].any())  # strictly below


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_prototypes_themselves_are_dropped(tmp_path, dtype):
    file = tmp_path / "c.safetensors"
    Codebook(zoo.noise(7, WIDTH, seed=5).to(dtype)).save(file)
    own = read_codebook(file).prototypes[None]
    for theta in (0.3, 0.999):
        keep = create("codebook", {"path": str(file), "theta": theta}).keep(view(torch.cat([own, -own], 1)), whole(14))
        assert not bool(keep[:, :7].any())


def test_at_least_and_at_most():
    values = torch.tensor([[0.9, 0.2, 0.5, 0.5, 0.1], [0.9, 0.9, 0.9, 0.8, 0.9]])
    assert keep_below(values, 0.45).tolist() == [[False, True, False, False, True], [False, False, False, True, False]]
    assert keep_below(values, 0.0, 3).tolist() == [[False, True, True, False, True], [True, True, False, True, False]]
    assert keep_below(values, 1.0, 1, 2).tolist() == [
        [False, True, False, False, True],
        [True, False, False, True, False],
    ]
    assert keep_below(values, 0.0, 4, 2).sum(1).tolist() == [2, 2]  # K is the bound


def test_a_cap_leaves_fewer(path):
    rule = create("codebook", {"path": path, "theta": 0.9})
    visual = view(zoo.noise(2, 30, WIDTH))
    assert rule.adaptive and rule.keep(visual, whole(30)).sum(1).tolist() == [30, 30]
    capped = rule.keep(visual, whole(30, 8))
    lowest = create("codebook", {"path": path, "policy": "count"}).keep(visual, whole(30, 8))
    assert torch.equal(capped, lowest) and capped.sum(1).tolist() == [8, 8]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("N", [1, 7, 196, 576, 729])
def test_ratios_are_exact(path, variant, N):
    visual = view(zoo.noise(1, N, WIDTH).half())
    rule = create("codebook", {"path": path, "policy": "ratio", "variant": variant})
    for share in (0.001, 0.11, 0.25, 0.5, 0.777, 0.999, 1):
        K = N if share == 1 else keep_count(N, share)
        assert int(rule.keep(visual, whole(N, K)).sum()) == K


def test_ties_go_to_the_first(path):
    same = zoo.noise(1, 1, WIDTH).expand(2, 10, -1)
    keep = create("codebook", {"path": path, "policy": "count"}).keep(view(same), whole(10, 4))
    assert keep.tolist() == [[True] * 4 + [False] * 6] * 2
    assert keep_lowest(torch.tensor([2.0, 1.0, 1.0, 1.0]), 2).tolist() == [False, True, True, False]


def test_wrong_options(path):
    for options, message in (
        ({"policy": "top"}, "use one of"),
        ({"variant": "softmax"}, "use one of"),
        ({"variant": "double_softmax"}, "use policy='ratio'"),
        ({"theta": 45}, "between -1 and 1"),
        ({"theta": True}, "between -1 and 1"),
        ({"min_keep": 0}, "at least 1"),
        ({"thres": 0.4}, "has no option"),
    ):
        with pytest.raises(ValueError, match=message):
            create("codebook", {"path": path} | options)
    with pytest.raises(ValueError, match='options={"path"'):
        create("codebook").keep(view(zoo.noise(1, 4, WIDTH)), whole(4))
    with pytest.raises(ValueError, match="width 48, this model's visual tokens have 32"):
        create("codebook", {"path": path}).keep(view(zoo.noise(1, 4, 32)), whole(4))


# ---------------------------------------------------------------------------------------------------------------
# Files


def test_a_file_comes_back_as_it_was(tmp_path):
    file = tmp_path / "deep" / "c.safetensors"
    rows = zoo.noise(3, WIDTH).half()
    Codebook(rows, {"model": "m", "pictures": ["a", "b"]}, torch.tensor([1, 1, 2]), torch.tensor([0, 1, 1])).save(file)
    found = read_codebook(file)
    assert torch.equal(found.prototypes, rows) and found.D == WIDTH and len(found) == 3
    assert found.cluster_id.tolist() == [1, 1, 2] and found.source_index.tolist() == [0, 1, 1]
    assert found.metadata["model"] == "m" and found.metadata["D"] == WIDTH
    assert [f.name for f in file.parent.iterdir()] == ["c.safetensors"]
    first = file.read_bytes()
    found.save(file)
    assert file.read_bytes() == first


def test_a_changed_file_is_read_again(path):
    assert len(codebook_at(path)) == 7 and codebook_at(path) is codebook_at(path)
    first = units_at(path, torch.device("cpu"))
    book(9).save(path)
    os.utime(path, ns=(1, 1))
    assert len(codebook_at(path)) == 9 and len(units_at(path, torch.device("cpu"))) == 9 != len(first)


def test_what_is_no_codebook_is_refused(tmp_path):
    file = tmp_path / "c.safetensors"
    with pytest.raises(ValueError, match="there is no codebook"):
        read_codebook(file)
    with pytest.raises(ValueError, match="there is no codebook"):
        create("codebook", {"path": str(file)}).keep(view(zoo.noise(1, 4, WIDTH)), whole(4))
    file.write_bytes(b"PK\x03\x04 not safetensors")
    with pytest.raises(ValueError, match="import-legacy"):
        read_codebook(file)
    save_file({"prototypes": torch.ones(2, 3)}, file)
    with pytest.raises(ValueError, match="holds no codebook"):
        read_codebook(file)
    head = {"codebook": json.dumps({"format": "mob-codebook/1", "prototypes_sha256": "0"})}
    save_file({"prototypes": torch.ones(2, 3)}, file, head)
    with pytest.raises(ValueError, match="not those that it was saved with"):
        read_codebook(file)
    save_file({"prototypes": torch.ones(2, 3)}, file, {"codebook": "{"})
    with pytest.raises(ValueError, match="damaged"):
        read_codebook(file)


@pytest.mark.parametrize(
    "rows",
    [
        torch.ones(3),
        torch.ones(0, 3),
        torch.ones(2, 3, dtype=torch.int32),
        torch.tensor([[1.0, float("nan")]]),
        torch.tensor([[1.0, 2.0], [0.0, 0.0]]),
        torch.eye(3).to_sparse(),
        [[1.0]],
    ],
)
def test_wrong_prototypes(rows):
    with pytest.raises(ValueError, match="the codebook"):
        Codebook(rows)


# ---------------------------------------------------------------------------------------------------------------
# Whose codebook


def test_a_codebook_of_another_model_is_refused(tmp_path):
    one = books.subject("llava", torch.float32)
    mine = book(model="mine", projector_sha256=projector_sha256(one.model))
    check_model(mine, one.model)
    mine.save(tmp_path / "mine.safetensors")
    rule = create("codebook", {"path": str(tmp_path / "mine.safetensors")})
    rule.check(one.model)
    with torch.no_grad():
        one.model.model.multi_modal_projector.linear_1.bias[3] += 0.5
    with pytest.raises(ValueError, match="made for mine, whose projector has other weights"):
        rule.check(one.model)
    with pytest.raises(ValueError, match="of width 5, this model of 48"):
        check_model(Codebook(torch.ones(2, 5)), one.model)
    with pytest.warns(UserWarning, match="does not say which model"):
        check_model(book(), one.model)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("loaded", [torch.float16, torch.bfloat16, torch.float32])
def test_the_type_that_a_model_is_loaded_in_does_not_matter(stored, loaded):
    model = books.subject("llava", torch.float32).model.to(stored)
    mine = book(projector_sha256=projector_sha256(model))
    check_model(mine, model.to(loaded))


def test_every_family_has_a_projector():
    for name in ("llava", "llava_next", "llava_onevision", "video_llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"):
        assert projector_sha256(zoo.FAMILIES[name].model(torch.float32)) is not None
