"""Collects what the tests of this folder find, for ``docs/models.md`` (see ``tests/models_page.py``)."""

from __future__ import annotations

import os

import pytest

import models_page
from zoo import FAMILIES

RUN = pytest.StashKey[dict]()


def pytest_configure(config):
    config.stash[RUN] = {"families": {}, "refused": {}, "accepted": [], "unbuilt": []}


@pytest.fixture
def run(request):
    """What has been found so far."""
    return request.config.stash[RUN]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.when == "call" or (call.when == "setup" and report.skipped):
        collect(item.config.stash[RUN], item, report.outcome, dict(report.user_properties))
    return report


def collect(run, item, outcome, properties):
    """Note the outcome of a test, and what it says about its family or class."""
    given = getattr(item, "callspec", None)
    family = given.params.get("family") if given else None
    if "kind" in properties:
        kind, name = properties["kind"], properties["class"]
        if kind == "refused":
            run["refused"].setdefault(name, properties["message"])  # a test with settings of its own comes first
        elif name not in run[kind]:
            run[kind].append(name)
    elif family is not None and outcome != "skipped":
        facts = run["families"].setdefault(family.name, {"checks": {}})
        facts |= {key: properties[key] for key in ("class", "layouts", "layer") if key in properties}
        for check, (test, parameters) in models_page.CHECKS.items():
            one = next((value for key, value in given.params.items() if key == "attention"), "")
            if item.originalname == test and one in parameters:
                before = facts["checks"].get(check, "passed")
                facts["checks"][check] = outcome if before == "passed" else before


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    if not os.environ.get("MOB_WRITE_MODELS"):
        return
    run = config.stash[RUN]
    if exitstatus or len(run["families"]) < len([family for family in FAMILIES.values() if not family.needs]):
        terminalreporter.line(
            "docs/models.md is written when all tests of tests/families have run and passed", red=True
        )
        return
    run["families"] = {name: run["families"][name] for name in FAMILIES if name in run["families"]}
    models_page.write(models_page.load() | {models_page.VERSION: run})
    terminalreporter.line(f"docs/models.md written, transformers {models_page.VERSION}")
