"""In CI a skipped test of the evaluation is a failure: it would say nothing, and look like a pass.

``conftest.py`` of a folder takes the hook over. ``@pytest.mark.may_skip(reason)`` is for tests that a platform or a
version of transformers really does not have; tests marked slow are deselected, which is not skipping.
"""

from __future__ import annotations

import os

import pytest


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        forbid(item, report)


def forbid(item, report) -> None:
    """Turn a report of a skip into a failure, with the reason of the skip."""
    if item.get_closest_marker("may_skip") is not None:
        return
    reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = f"{item.nodeid} was skipped in CI, where everything it needs has to be there: {reason}"
