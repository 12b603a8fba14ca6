# SPDX-License-Identifier: Apache-2.0
"""
One target under atheris, in a process of its own: ``python -m fuzz.parsers.run TARGET [libFuzzer options]``.

Modules of ciliumd are instrumented as they are imported, so that the fuzzer sees which branches an input
took.  Documents are changed by the mutator that knows their shape, and half of the time by the fuzzer's own.
"""

import json
import random
import sys
from collections.abc import Callable

import atheris
import structlog

with atheris.instrument_imports(include=["ciliumd"]):
    from fuzz.parsers.targets import TARGETS

from fuzz.mutate import Mutator
from fuzz.samples import SAMPLES

DOCUMENTS = frozenset({"objects", "manifests", "cni"})


def by_shape(data: bytes, max_size: int, seed: int) -> bytes:
    """A document with another shape, or bytes with other bits."""
    chance = random.Random(seed)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        document = dict(chance.choice(SAMPLES)) if chance.random() < 0.1 else None
    if isinstance(document, dict) and chance.random() < 0.7:
        changed = Mutator(chance, [dict(one) for one in SAMPLES]).mutate(document)
        text = json.dumps(changed).encode()
        if len(text) <= max_size:
            return text
    return bytes(atheris.Mutate(data, max_size))


def main() -> None:
    """Fuzz; never returns."""
    name = sys.argv.pop(1)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    mutator: Callable[[bytes, int, int], bytes] | None = by_shape if name in DOCUMENTS else None
    options = {} if mutator is None else {"custom_mutator": mutator}
    atheris.Setup(sys.argv, TARGETS[name], **options)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
