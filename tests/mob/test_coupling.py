"""Hausdorff distances equal their definition, with and without masks."""

from __future__ import annotations

import pytest
import torch

import reference
from mob.coupling import hausdorff, radii
from mob.covering import select


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(20))
def test_hausdorff_equals_the_definition(seed):
    visual, prompt = rows(1 + seed, 6, seed=seed), rows(1 + seed % 5, 6, seed=seed + 100)
    expected = reference.hausdorff(visual.double().numpy(), prompt.double().numpy())
    assert hausdorff(visual, prompt).item() == pytest.approx(expected, abs=1e-4)
    assert hausdorff(prompt, visual).item() == pytest.approx(expected, abs=1e-4)


def test_known_distances():
    """Unit rows: the same set has distance 0, opposite rows 2, orthogonal rows the square root of 2."""
    one = torch.tensor([[3.0, 0.0]])
    assert hausdorff(one, 7 * one).item() == 0
    assert hausdorff(one, -one).item() == 2
    assert hausdorff(one, torch.tensor([[0.0, 5.0]])).item() == pytest.approx(2**0.5)


def test_the_farther_direction_counts():
    """Every prompt token is a visual token, but not the reverse."""
    visual = torch.eye(3)
    assert hausdorff(visual, visual[:1]).item() == pytest.approx(2**0.5)


def test_masked_rows_do_not_count():
    visual, prompt = rows(3, 9, 6), rows(3, 5, 6, seed=1)
    visual_mask = torch.arange(9) < torch.tensor([[9], [4], [1]])
    prompt_mask = torch.arange(5) < torch.tensor([[2], [5], [3]])
    got = hausdorff(visual, prompt, visual_mask=visual_mask, prompt_mask=prompt_mask)
    for row in range(3):
        v, p = visual[row][visual_mask[row]], prompt[row][prompt_mask[row]]
        assert got[row].item() == pytest.approx(reference.hausdorff(v.numpy(), p.numpy()), abs=1e-4)
        alone = hausdorff(visual[row], prompt[row], visual_mask=visual_mask[row], prompt_mask=prompt_mask[row])
        assert alone.shape == () and torch.equal(alone, got[row])


def test_a_batch_equals_its_samples():
    visual, prompt = rows(4, 7, 5), rows(4, 3, 5, seed=1)
    together = hausdorff(visual, prompt)
    assert together.shape == (4,)
    assert torch.equal(together, torch.stack([hausdorff(v, p) for v, p in zip(visual, prompt, strict=True)]))


def test_empty_sets_have_no_distance():
    visual, prompt = rows(2, 4, 5), rows(2, 3, 5, seed=1)
    assert hausdorff(visual[0], prompt[0, :0]).isnan()
    assert hausdorff(visual[:, :0], prompt).isnan().tolist() == [True, True]
    mask = torch.tensor([[False] * 3, [True] * 3])
    assert hausdorff(visual, prompt, prompt_mask=mask).isnan().tolist() == [True, False]


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_unusable_rows_are_the_origin(bad):
    visual = torch.tensor([[1.0, 0.0], [bad, bad]])
    assert hausdorff(visual, visual[:1]).item() == 1.0


@pytest.mark.parametrize("visual, prompt", [((4, 5), (3, 6)), ((2, 4, 5), (3, 5)), ((5,), (5,))])
def test_shapes_that_do_not_fit(visual, prompt):
    with pytest.raises(ValueError, match="of one width"):
        hausdorff(torch.ones(visual), torch.ones(prompt))


def test_radii_of_a_selection():
    visual, prompt = rows(2, 12, 6), rows(2, 4, 6, seed=1)
    mask = torch.tensor([[True] * 4, [True] * 2 + [False] * 2])
    indices, centre = select(visual, prompt, 6, 3, 2, prompt_mask=mask)
    got = radii(visual, prompt, mask, indices, centre)
    for row in range(2):
        v, p = visual[row].numpy(), prompt[row][mask[row]].numpy()
        prompt_centres = v[indices[row][centre[row]].numpy()]
        visual_centres = v[indices[row][~centre[row]].numpy()]
        expected = ((v, p), (prompt_centres, p), (visual_centres, v))
        for value, sets in zip(got, expected, strict=True):
            assert value[row].item() == pytest.approx(reference.hausdorff(*sets), abs=1e-4)


def test_radii_without_prompt_centres():
    visual = rows(1, 8, 6)
    indices, centre = select(visual, visual[:, :0], 3, 0, 1)
    eta, eps_p, eps_v = radii(visual, visual[:, :0], None, indices, centre)
    assert eta.isnan().all() and eps_p.isnan().all() and 0 < eps_v.item() <= 2
