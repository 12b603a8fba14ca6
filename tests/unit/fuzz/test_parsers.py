# SPDX-License-Identifier: Apache-2.0
"""Every input a fuzzer found worth keeping is taken as it should be; ``--long`` looks for new ones."""

import json
import platform
from collections.abc import Callable
from importlib.util import find_spec

import pytest
import structlog

from fuzz.parsers import cjson
from fuzz.parsers.__main__ import CORPUS, fuzz, seeds
from fuzz.parsers.targets import TARGETS

SECONDS = 60
LARGEST = 500_000


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_corpus_is_taken_as_it_should_be(target: str) -> None:
    """No exception but the refusals each parser documents, and what is asked of what it takes."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    tried = 0
    try:
        for data in seeds(target):
            TARGETS[target](data)
            tried += 1
    finally:
        structlog.reset_defaults()
    assert tried


def test_corpus_is_small_and_of_targets_that_exist() -> None:
    """It is in every checkout."""
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} == set(TARGETS)
    assert sum(path.stat().st_size for path in files) < LARGEST


def test_readers_that_disagree_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the target that compares two of them."""
    cjson.differs(b'{"a": "b"}')
    monkeypatch.setattr(cjson, "_read", lambda _text: None)

    with pytest.raises(cjson.Different):
        cjson.differs(b'{"a": "b"}')


def test_new_inputs_are_taken_as_they_should_be(
    is_long: bool, record_property: Callable[[str, object], None]
) -> None:
    """S7: every target under the fuzzer for a minute; by default one, to see that the fuzzer works."""
    if find_spec("atheris") is None:
        assert platform.machine() != "x86_64", "the fuzzer is not installed"
        return
    results = [fuzz(target, SECONDS if is_long else 1) for target in (TARGETS if is_long else ["address"])]
    for one in results:
        record_property(
            "figure",
            f"S7: {one.target}: {one.executions} executions in {one.seconds:.0f} s, "
            f"{len(one.crashes)} crashes",
        )
    rows = [
        {
            "target": one.target,
            "executions": one.executions,
            "seconds": round(one.seconds),
            "crashes": len(one.crashes),
        }
        for one in results
    ]
    record_property("data", json.dumps({"case": "S7", "targets": rows}))
    assert [path for one in results for path in one.crashes] == []
    assert all(one.executions for one in results)
