"""``docs/models.md`` is what the tests of this folder, which run before this file, have found."""

from __future__ import annotations

import os

import pytest

import models_page
from zoo import FAMILIES

pytestmark = pytest.mark.skipif(bool(os.environ.get("MOB_WRITE_MODELS")), reason="the page is being written")
ANEW = 'write docs/models.md anew: MOB_WRITE_MODELS=1 python -m pytest tests/families -m "slow or not slow"'


def test_every_family_is_in_the_table():
    listed = {name for version in models_page.load().values() for name in version["families"]}
    assert listed == set(FAMILIES), ANEW


def test_the_page_is_made_from_what_was_found():
    assert models_page.PAGE.read_text() == models_page.page(models_page.load()), ANEW


def test_the_table_says_what_this_run_has_found(run):
    found = models_page.load().get(models_page.VERSION)
    if found is None:
        pytest.skip(f"nothing is recorded for transformers {models_page.VERSION}")
    for name, facts in run["families"].items():
        listed = found["families"].get(name, {})
        assert facts["checks"].items() <= listed.get("checks", {}).items(), f"{name}: {ANEW}"
        assert all(listed.get(key) == facts[key] for key in ("class", "layouts", "layer") if key in facts), name
    for name, message in run["refused"].items():
        assert found["refused"].get(name) == message, f"{name}: {ANEW}"
    for kind in ("accepted", "unbuilt"):
        assert set(run[kind]) <= set(found[kind]), f"{kind}: {ANEW}"
