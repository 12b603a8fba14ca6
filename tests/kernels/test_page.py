# SPDX-License-Identifier: Apache-2.0
"""The page of kernels is compared where it can be: Debian's versions move on, and other numbers with them."""

import sys
from typing import Any

import pytest

from lab.process import REPOSITORY

# Behind: build/kernels.py is not this package.
sys.path.append(str(REPOSITORY / "build"))

import kernels_page

pytestmark = pytest.mark.kernels

FEATURE = "tcx"


def kernel(release: str, most: int, *, tcx: bool) -> dict[str, Any]:
    """What is measured of a kernel."""
    return {
        "suite": "any",
        "release": release,
        "version": f"{release}-1",
        "features": {FEATURE: tcx},
        "without": {FEATURE: "something else"},
        "verified_insns": {"lxc/a": {"most": most}, "lxc/b": {"most": 1}},
    }


OLD, NEW = kernel("5.10.1", 4_000, tcx=False), kernel("7.1.1", 4_000, tcx=True)
PAGE = kernels_page.page({"5.10": OLD, "newest": NEW})


def test_page_has_the_dearest_program_rounded_up() -> None:
    """One row of each object."""
    assert "| lxc | 5,000 | 5,000 |" in PAGE
    assert "| tcx | 5.10 | something else |" in PAGE
    assert not kernels_page.differs(PAGE, PAGE)


@pytest.mark.parametrize(
    ("changed", "differs"),
    [
        pytest.param(kernel("7.1.1", 6_000, tcx=True), True, id="same version, dearer"),
        pytest.param(kernel("7.1.1", 4_000, tcx=False), True, id="same version, lacks something"),
        pytest.param(kernel("7.2.1", 6_000, tcx=False), False, id="another version"),
    ],
)
def test_only_versions_that_were_tried_are_compared(changed: dict[str, Any], differs: bool) -> None:
    """A change of ours shows on a kernel that did not change."""
    assert kernels_page.differs(PAGE, kernels_page.page({"5.10": OLD, "newest": changed})) is differs


def test_other_kernels_are_compared_when_one_has_moved() -> None:
    """What moved hides nothing else."""
    moved = kernel("7.2.1", 6_000, tcx=True)

    for dearer in (kernel("5.10.1", 6_000, tcx=False), kernel("5.10.1", 4_000, tcx=True)):
        assert kernels_page.differs(PAGE, kernels_page.page({"5.10": dearer, "newest": moved}))


def test_prose_is_compared() -> None:
    """Also where every kernel has moved."""
    assert kernels_page.differs(PAGE.replace("boots Debian", "starts Debian"), PAGE)
