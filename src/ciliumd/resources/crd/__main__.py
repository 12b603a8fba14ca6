# SPDX-License-Identifier: Apache-2.0
"""
Write the CustomResourceDefinitions that the operator installs, or check that they are as the models say.

    python -m ciliumd.resources.crd [--check] [--output DIRECTORY]

What is installed is the text that was reviewed, not what another release of a library makes of a model.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml

from ciliumd.resources.crd.kinds import definitions

DIRECTORY = Path(__file__).parents[2] / "operator" / "crds"
_HEAD = "# SPDX-License-Identifier: Apache-2.0\n# Written by python -m ciliumd.resources.crd\n"


class _Plain(yaml.SafeDumper):
    """No anchors: what is shared in Python is written out."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True


def text(definition: dict[str, Any]) -> str:
    """The file of one definition."""
    return _HEAD + yaml.dump(definition, Dumper=_Plain, sort_keys=True, width=110)


def files() -> dict[str, str]:
    """Every file, by name."""
    return {f"{name.partition('.')[0]}.yaml": text(one) for name, one in definitions().items()}


def drift(directory: Path) -> list[str]:
    """The files that are not as the models say: missing, different, or about a kind that is no more."""
    wanted = files()
    found = {path.name: path.read_text() for path in directory.glob("*.yaml")}
    return sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))


def main(argv: list[str]) -> int:
    """Write or check; 1 if a check finds a difference."""
    parser = argparse.ArgumentParser(prog="python -m ciliumd.resources.crd")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is out of date")
    parser.add_argument("--output", type=Path, default=DIRECTORY, metavar="DIRECTORY")
    arguments = parser.parse_args(argv)
    stale = drift(arguments.output)
    if arguments.check:
        for name in stale:
            sys.stderr.write(f"{arguments.output / name} is not as the models say\n")
        return 1 if stale else 0
    wanted = files()
    for name in stale:
        path = arguments.output / name
        if name in wanted:
            path.write_text(wanted[name])
        else:
            path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
