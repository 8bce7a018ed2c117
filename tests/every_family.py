"""Every family of the zoo as a parameter of tests; those that this transformers does not have are skipped."""

from __future__ import annotations

import pytest
import transformers

from zoo import FAMILIES

every = pytest.mark.parametrize(
    "family",
    [
        pytest.param(
            family,
            marks=pytest.mark.skipif(
                bool(family.needs) and not hasattr(transformers, family.needs),
                reason=f"transformers {transformers.__version__} has no {family.needs}",
            ),
        )
        for family in FAMILIES.values()
    ],
    ids=FAMILIES,
)
