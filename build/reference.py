# SPDX-License-Identifier: Apache-2.0
"""
Write docs/reference/: the chart's values, and the agent's options.

Of values the text is the comments of values.yaml that begin with `# --`, types are values.schema.json's,
refusals are files/unsupported.yaml's.  Options are the fields of the agent's settings.  With --check
nothing is written, and a difference is an error.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

import yaml

from toolchain import ROOT, fail, replace

sys.path.insert(0, str(ROOT / "src"))

from ciliumd.daemon.config_keys import RENAMED
from ciliumd.daemon.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

CHART = ROOT / "charts" / "ciliumd"
TARGET = ROOT / "docs" / "reference"
MARK = "# -- "
HEAD = """\
<!-- SPDX-License-Identifier: Apache-2.0 -->
<!-- Written by build/reference.py from charts/ciliumd; edit values.yaml there. -->
# Values of the chart

Names and meanings are Cilium's. An unknown name or a value of the wrong type is refused by the schema. Values
below `global.` count as if they stood at the top.

| value | type | default | |
|---|---|---|---|
"""
REFUSED = """
## Refused by name

Values of Cilium that this version does not have. Whoever sets one believes that it is done, so the install
fails and says which. Each may be written as long as it is off, or has the value given here.

| value | may be | why nothing else |
|---|---|---|
"""


OPTIONS = """\
<!-- SPDX-License-Identifier: Apache-2.0 -->
<!-- Written by build/reference.py from src/ciliumd/daemon/settings.py; edit the descriptions there. -->
# Options of the agent

`ciliumd agent` reads them from the command line (`--tunnel-port=8472`), then from the environment
(`CILIUMD_TUNNEL_PORT`), then from the directory `--config-dir` (the ConfigMap `cilium-config`: a file for
each).  Names in parentheses are understood too.

| option | default | |
|---|---|---|
"""


def leaves(node: yaml.MappingNode, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any, int]]:
    """Path, value and line (from 0) of every value that is no mapping, or an empty one."""
    for key, value in node.value:
        here = (*path, key.value)
        if isinstance(value, yaml.MappingNode) and value.value:
            yield from leaves(value, here)
        else:
            yield here, yaml.safe_load(yaml.serialize(value)), key.start_mark.line


def comment(lines: list[str], line: int) -> str:
    """The comment right above a line, from its mark on; empty without one."""
    text: list[str] = []
    for above in reversed(lines[:line]):
        stripped = above.strip()
        if not stripped.startswith("#"):
            return ""
        if stripped.startswith(MARK):
            return " ".join([stripped.removeprefix(MARK), *reversed(text)])
        text.append(stripped.removeprefix("#").strip())
    return ""


def kind(schema: dict[str, Any], path: tuple[str, ...]) -> str:
    """What the schema says a value is.  A value that it does not have is an error."""
    for name in path:
        properties = schema.get("properties")
        if properties is None:
            return "any"
        if name not in properties:
            fail(f"values.yaml has {'.'.join(path)}, values.schema.json has not")
        schema = properties[name]
    if "enum" in schema:
        return " ".join(f"`{json.dumps(one)}`" for one in schema["enum"])
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return " or ".join(one for one in kinds if one != "null")


def values() -> str:
    """The page of the chart's values."""
    text = (CHART / "values.yaml").read_text()
    schema = json.loads((CHART / "values.schema.json").read_text())
    lines = text.splitlines()
    root = yaml.compose(text)
    if not isinstance(root, yaml.MappingNode):
        fail("values.yaml is no mapping")
    rows = [
        f"| `{'.'.join(path)}` | {kind(schema, path)} | `{json.dumps(value)}` | {comment(lines, line)} |\n"
        for path, value, line in leaves(root)
    ]
    refused = yaml.safe_load((CHART / "files" / "unsupported.yaml").read_text())["rows"]
    rows_refused = [
        f"| `{row['value']}` | {' '.join(map(_code, row.get('accepted', ['false'])))} | {row['reason']} |\n"
        for row in refused
    ]
    return HEAD + "".join(rows) + REFUSED + "".join(rows_refused)


def options() -> str:
    """The page of the agent's options."""
    names = {name: f" (`{key}`)" for key, name in RENAMED.items()}
    rows = [
        f"| {_code(name.replace('_', '-'))}{names.get(name, '')} | {_default(field.default)} "
        f"| {field.description} |\n"
        for name, field in Settings.model_fields.items()
    ]
    return OPTIONS + "".join(rows)


def _default(value: object) -> str:
    if isinstance(value, tuple):
        return _code(",".join(map(str, value))) if value else ""
    if isinstance(value, bool):
        return _code(str(value).lower())
    return "" if value in {None, ""} else _code(str(value))


def _code(text: str) -> str:
    return f"`{text}`"


def main() -> int:
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare")
    check = parser.parse_args().check
    for path, wanted in ((TARGET / "values.md", values()), (TARGET / "options.md", options())):
        if not check:
            if replace(path, wanted.encode()):
                sys.stdout.write(f"wrote {path.relative_to(ROOT)}\n")
        elif not path.exists() or path.read_text() != wanted:
            fail(f"{path.relative_to(ROOT)} is not what the sources say: run build/reference.py")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
