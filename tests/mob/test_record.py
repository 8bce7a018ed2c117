"""Records go to JSON and back, and refuse what does not fit together."""

from __future__ import annotations

import dataclasses
import json

import pytest

from mob.record import RetainedPatches, number

RECORD = RetainedPatches(
    keep_indices=[1, 6],
    prompt_center=[True, False],
    image=[0, 0],
    row=[0, 1],
    column=[1, 2],
    N=16,
    K=2,
    K_p=1,
    k=1,
    layer=3,
    eta=1.25,
    eps_p=None,
    eps_v=0.5,
    milliseconds=0.1,
)


@pytest.mark.parametrize("record", [RECORD, RetainedPatches()])
def test_round_trip(record):
    assert RetainedPatches.from_json(record.to_json()) == record
    assert RetainedPatches.from_dict(record.to_dict()) == record


def test_json_is_plain():
    values = json.loads(RECORD.to_json())
    assert values["prompt_center"] == [True, False] and values["eps_p"] is None
    assert set(values) == {f.name for f in dataclasses.fields(RetainedPatches)}


@pytest.mark.parametrize("name", ["keep_indices", "prompt_center", "image", "row", "column"])
def test_every_list_has_K_entries(name):
    with pytest.raises(ValueError, match=r"K=2 but .* lengths \[1, 2\]"):
        dataclasses.replace(RECORD, **{name: [0]})


def test_unknown_keys_are_errors():
    with pytest.raises(ValueError, match="unknown keys: colour, shape"):
        RetainedPatches.from_dict({**RECORD.to_dict(), "shape": 1, "colour": 2})


def test_numbers_that_json_does_not_have():
    assert number(float("nan")) is None and number(0.5) == 0.5
    with pytest.raises(ValueError):
        dataclasses.replace(RECORD, eta=float("nan")).to_json()
