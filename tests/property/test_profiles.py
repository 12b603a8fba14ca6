# SPDX-License-Identifier: Apache-2.0
"""What the two forms of the layer draw."""

import pytest
from hypothesis import settings

pytestmark = pytest.mark.property


def test_every_run_draws_the_same_and_the_longer_form_does_not() -> None:
    """The shares of a release were one and the same while that took over what the default says."""
    default, longer = settings.get_profile("default"), settings.get_profile("long")
    assert default.derandomize
    assert not longer.derandomize
    assert longer.max_examples > default.max_examples
