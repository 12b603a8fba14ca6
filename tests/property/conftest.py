# SPDX-License-Identifier: Apache-2.0
"""
How many cases the property tests take.

The default profile is the same on every run, so that a change is judged by what it changed; ``long``
(``CILIUMD_PROPERTY_PROFILE=long``) draws new cases each time.
"""

import contextlib
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from ciliumd.bpf import NotPermitted
from property.computed import InterpreterJudge, Judge
from property.kernel_judge import KernelJudge

_COMMON = {
    "deadline": None,
    "database": None,
    "print_blob": True,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}

settings.register_profile("default", max_examples=800, derandomize=True, **_COMMON)
# A profile takes over what the one before it says, where it says nothing.
settings.register_profile("long", max_examples=10_000, derandomize=False, **_COMMON)
settings.load_profile(os.environ.get("CILIUMD_PROPERTY_PROFILE", "default"))


# What a release asks of the judges is 100,000 sets of policies: shares of them, for as many processes.
SHARES = 10


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test of a ``share`` takes its number of cases once, and so many times in the longer form."""
    if "share" in metafunc.fixturenames:
        metafunc.parametrize(
            "share", range(SHARES if metafunc.config.getoption("--long") else 1), indirect=True
        )


@pytest.fixture
def share(request: pytest.FixtureRequest) -> int:
    """Which of the shares this is: cases of the longer form are random, so none is another one's."""
    return int(request.param)


@pytest.fixture(scope="session")
def is_long(request: pytest.FixtureRequest) -> bool:
    """Whether the figures of a release are asked for, and not a sample."""
    return bool(request.config.getoption("--long"))


@pytest.fixture(scope="session")
def kernel_judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelJudge | None]:
    """The datapath's lookup in this kernel; None where we must not load programs."""
    with contextlib.ExitStack() as stack:
        try:
            judge = stack.enter_context(KernelJudge(tmp_path_factory.mktemp("policy_probe")))
        except NotPermitted:
            judge = None
        yield judge


@pytest.fixture
def judges(kernel_judge: KernelJudge | None) -> list[Judge]:
    """Everybody who can judge here, beside the oracle."""
    return [InterpreterJudge(), *([kernel_judge] if kernel_judge else [])]
