# SPDX-License-Identifier: Apache-2.0
"""Fixtures of tests against a real API server: it is started once, and serves every kind of ours."""

from collections.abc import Iterator

import pytest

from api.agents import USER, prepare
from lab.apiserver import ApiServer


@pytest.fixture(scope="session")
def agents_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API server in which the user of agents may do what agents do, and no more."""
    with ApiServer(tmp_path_factory.mktemp("agents"), users=(USER,)) as server:
        prepare(server)
        yield server
