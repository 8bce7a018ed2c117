"""The rule in every family: several pictures, tiles with newlines, pooled videos, batches in which every sample keeps
another number; alone, and before MoB. Compared with the decoder on what a loop leaves of one sample."""

from __future__ import annotations

import math

import pytest
import torch

import mob
import zoo
from families.test_early import Slow, families, generate, needs_encoded
from mob.codebook_file import Codebook, projector_sha256
from mob.layout import IMAGE, VIDEO, arrange, declared

TILED = [zoo.FAMILIES[name] for name in ("llava_next", "llava_onevision")]


def embeddings(model, sample) -> tuple[torch.Tensor, list[int]]:
    """(T, D) of one sample, and the places of its visual tokens."""
    inputs = zoo.one(sample)
    visual = [i for i, token in enumerate(inputs["input_ids"][0].tolist()) if token in (zoo.IMAGE, zoo.VIDEO)]
    return Slow(model).capture(inputs)["inputs_embeds"][0], visual


def redundancies(rows: torch.Tensor, prototypes: torch.Tensor) -> list[float]:
    """By loops."""
    return [max(float(torch.cosine_similarity(row, one, dim=0)) for one in prototypes.to(row)) for row in rows]


@pytest.fixture()
def book(tmp_path):
    """A codebook file of a model; its prototypes are near some tokens of its pictures."""

    def made(model, samples) -> tuple[str, torch.Tensor, float]:
        rows = torch.cat([embeddings(model, one)[0][embeddings(model, one)[1]] for one in samples if zoo.lengths(one)])
        prototypes = (rows[::7] + 0.5 * rows.std() * zoo.noise(*rows[::7].shape)).float()
        path = str(tmp_path / "codebook.safetensors")
        Codebook(prototypes, {"model": "zoo", "projector_sha256": projector_sha256(model)}).save(path)
        return path, prototypes, float(torch.tensor(redundancies(rows, prototypes)).median()) + 1e-4

    return made


def kept_by_hand(model, sample, prototypes, theta, least) -> list[int]:
    """Visual tokens, counted from 0 over all pictures, that the threshold leaves of each picture on its own."""
    embeds, visual = embeddings(model, sample)
    values, kept, start = redundancies(embeds[visual], prototypes), [], 0
    for length in zoo.lengths(sample):
        mine = range(start, start + length)
        low = sorted(mine, key=lambda i: (values[i], i))[:least]
        kept += [i for i in mine if values[i] < theta or i in low]
        start += length
    return kept


@needs_encoded
@families
@pytest.mark.filterwarnings("ignore:the codebook")
def test_a_ragged_batch_equals_one_sample_at_a_time(family, book):
    samples, model = family.samples(), family.model()
    path, prototypes, theta = book(model, samples)
    options = {"path": path, "theta": theta, "min_keep": 2}
    with mob.prune(model, method="codebook", options=options) as pruning:
        answers, logits, _ = generate(model, zoo.collate(samples), max_new_tokens=1)
    slow = Slow(model)
    for row, sample in enumerate(samples):
        kept = kept_by_hand(model, sample, prototypes, theta, 2)
        record, N = pruning.records[row], sum(zoo.lengths(sample))
        assert record.keep_indices == kept and (N, len(kept)) == (record.N, record.K)
        inputs, (_, visual) = zoo.one(sample), embeddings(model, sample)
        left = {visual[i] for i in kept}
        stay = [i for i in range(inputs["input_ids"].shape[1]) if i not in visual or i in left]
        given = slow.capture(inputs)
        with torch.no_grad():
            out = slow.decoder(**slow.short(given, stay, inputs["input_ids"].shape[1]))
            expected = model.lm_head(out.last_hidden_state)[0, -1]
        assert answers[row] == [int(expected.argmax())]
        assert (logits[row, 0] - expected.float()).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))
    counts = [record.K for record in pruning.records if record.N]
    assert all(0 < record.K < record.N for record in pruning.records if record.N)
    assert len(counts) < 2 or len(set(counts)) > 1  # the batch was ragged


@needs_encoded
@families
def test_before_mob(family, book):
    """What MoB sees is what the codebook left; budgets shrink with it; the radius is that of all dropped tokens."""
    samples, model = family.samples(), family.model()
    path, prototypes, theta = book(model, samples)
    options = {"codebook": {"path": path, "theta": theta}}
    with mob.prune(model, K=6, method="codebook+mob", layer=family.layer, options=options) as pruning:
        generate(model, zoo.collate(samples), max_new_tokens=2)
    for record, sample in zip(pruning.records, samples, strict=True):
        kept = kept_by_hand(model, sample, prototypes, theta, 1)
        assert set(record.keep_indices) <= set(kept) and min(6, len(kept)) == record.K
        assert sum(zoo.lengths(sample)) == record.N
        if not record.N:
            continue
        (stage,) = record.stages
        assert (stage["method"], stage["layer"], stage["N"], stage["K"]) == ("codebook", 0, record.N, len(kept))
        embeds, visual = embeddings(model, sample)
        rows = torch.nn.functional.normalize(embeds[visual], dim=1)
        radius = max(min(math.dist(row, rows[i]) for i in kept) for row in rows)
        assert stage["radius"] == pytest.approx(radius, abs=1e-5)


@needs_encoded
@pytest.mark.parametrize("family", TILED, ids=[family.name for family in TILED])
@pytest.mark.parametrize("newlines", [True, "rows"])
def test_newlines_of_tiles(family, book, newlines):
    """They are not asked about, and stay: all of them, or those whose row has a token left."""
    model, sample = family.model(), family.samples()[0]
    path, prototypes, _ = book(model, [sample])
    embeds, visual = embeddings(model, sample)
    values = redundancies(embeds[visual], prototypes)
    low = sorted(values)[len(values) // 8 :]
    options = {"path": path, "theta": (low[0] + low[1]) / 2}
    with mob.prune(model, method="codebook", options=options, keep_newlines=newlines) as pruning:
        asked, shorter = pruning._early(pruning.settings), pruning.shorten(zoo.one(sample))
        _, logits, out = generate(model, zoo.one(sample), max_new_tokens=1)
    inputs = zoo.one(sample)
    kinds = [[{zoo.IMAGE: IMAGE, zoo.VIDEO: VIDEO}.get(token, 0) for token in inputs["input_ids"][0].tolist()]]
    ((picture,),) = arrange(model.config, kinds, declared(model.config, inputs))
    cells = picture.cells(0)
    lines = [i for i, cell in enumerate(cells) if cell.row >= 0 > cell.column]
    rest = [i for i in range(len(cells)) if i not in lines and values[i] < options["theta"]]
    rows = {cells[i][:3] for i in rest}
    single = [i for i in lines if picture.views[cells[i].view].columns == 0]
    stay = [i for i in lines if newlines is True or cells[i][:3] in rows or i in single]
    expected = sorted(visual[i] for i in [*rest, *stay])
    found = [at for at in shorter.rows[0].tolist() if at in set(visual)]
    assert len(asked) == 1 and found == expected and lines and rest
    assert (newlines is True) == (len(stay) == len(lines))
    assert len(rest) == pruning.records[-1].K


def test_rows_need_a_rule_before_the_decoder():
    with pytest.raises(ValueError, match="before the decoder only"):
        mob.prune(zoo.FAMILIES["llava_next"].model(), K=4, keep_newlines="rows")
    with pytest.raises(ValueError, match="or 'rows'"):
        mob.MoBConfig(keep_newlines="row")
