# SPDX-License-Identifier: Apache-2.0
"""The chart's files agree with each other and with the code; what helm makes of them is the chart layer's."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ciliumd import __version__
from ciliumd.daemon.config_keys import FIXED, FOREIGN, RENAMED
from ciliumd.daemon.settings import Settings
from ciliumd.operator.settings import Settings as OperatorSettings

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "charts" / "ciliumd"
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
UNSUPPORTED = yaml.safe_load((CHART / "files" / "unsupported.yaml").read_text())["rows"]
# Old spellings, which values.yaml leaves to the schema.
ALIASES = {"bpf.hostRouting", "nodePort.mode"}


def paths(values, before=()):
    """Every path of a tree of values, ends only."""
    for name, value in values.items():
        here = (*before, name)
        if isinstance(value, dict) and value:
            yield from paths(value, here)
        else:
            yield here


def schema_of(path):
    """What the schema says of a path, or of the first part of it that may have anything in it; else None."""
    found = SCHEMA
    for name in path:
        if found is None or "properties" not in found:
            return found
        found = found["properties"].get(name)
    return found


def test_one_version():
    """Chart, image and package are one release."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)
    assert f"quay.io/ciliumd/ciliumd:v{__version__}" in chart["annotations"]["artifacthub.io/images"]
    images = re.findall(r"quay\.io/ciliumd/ciliumd:(\S+)", (CHART / "README.md").read_text())
    assert set(images) == {f"v{__version__}"}


def test_the_definitions_named_are_the_operators():
    """What Artifact Hub shows is what gets installed."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    named = {row["name"] for row in yaml.safe_load(chart["annotations"]["artifacthub.io/crds"])}
    installed = {path.stem for path in (ROOT / "src/ciliumd/operator/crds").glob("*.yaml")}
    assert named == {f"{plural}.cilium.io" for plural in installed}


@pytest.mark.parametrize("path", sorted(paths(VALUES)), ids=".".join)
def test_every_value_is_in_the_schema(path):
    """By name, to its end."""
    assert schema_of(path) is not None


def test_every_object_of_the_schema_is_closed():
    """A mistyped name is an error at every level; only what is refused as a whole may have anything in it."""
    refused = {tuple(row["value"].split(".")) for row in UNSUPPORTED}

    def check(schema, path):
        if schema.get("type") == "object" and "properties" in schema:
            open_ = schema.get("additionalProperties", True) is not False
            assert not open_ or any(one[: len(path)] == path for one in refused), ".".join(path)
            for name, inner in schema["properties"].items():
                if isinstance(inner, dict):
                    check(inner, (*path, name))

    check(SCHEMA, ())


def test_every_name_of_the_schema_is_a_value_an_alias_or_refused():
    """Nothing is accepted and then ignored."""
    known = {".".join(path) for path in paths(VALUES)} | ALIASES | {row["value"] for row in UNSUPPORTED}
    tops = {name.split(".")[0] for name in known} | {"global"}
    assert set(SCHEMA["properties"]) == tops


def test_templates_read_only_values_that_exist():
    """A mistyped name in a template is an empty string in the cluster."""
    texts = [path.read_text() for path in (CHART / "templates").rglob("*") if path.is_file()]
    used = {name for text in texts for name in re.findall(r"(?:\.Values|\$values)\.([A-Za-z0-9.]+)", text)}
    unknown = {name for name in used if name.split(".")[0] != "global" and schema_of(name.split(".")) is None}
    assert unknown == set()


def test_keys_the_chart_writes_are_known():
    """To the agent, or as somebody else's."""
    text = (CHART / "templates" / "_config.tpl").read_text()
    written = set(re.findall(r'^ +"([a-z0-9-]+)" ', text, re.MULTILINE))
    written |= set(re.findall(r'set \$config "([a-z0-9-]+)"', text))
    own = {name.replace("_", "-") for name in Settings.model_fields}
    others = {"enable-tcx", "bpf-ct-global-tcp-max", "bpf-ct-global-any-max"}
    assert len(written) > 40
    assert written <= own | set(RENAMED) | set(FIXED) | FOREIGN | others


def test_options_of_the_operator_are_no_strangers_to_the_agent():
    """Both read one ConfigMap; the agent warns of keys nobody knows."""
    own = {name.replace("_", "-") for name in Settings.model_fields} | set(RENAMED)
    operator = {name.replace("_", "-") for name in OperatorSettings.model_fields}
    assert operator - own <= FOREIGN


def test_no_capability_that_is_not_needed():
    """Listed one by one; what a machine may not have is never asked for."""
    granted = {name for names in VALUES["securityContext"]["capabilities"].values() for name in names}
    assert granted == {"BPF", "NET_ADMIN", "NET_RAW", "PERFMON", "SYS_ADMIN", "SYS_CHROOT", "SYS_PTRACE"}
    assert VALUES["securityContext"]["capabilities"]["ciliumAgent"] == [
        "NET_ADMIN",
        "BPF",
        "PERFMON",
        "NET_RAW",
    ]


def test_refusals_are_reasons():
    """One row for each value, in words that continue "is not supported by this version: "."""
    names = [row["value"] for row in UNSUPPORTED]
    assert len(names) == len(set(names))
    for row in UNSUPPORTED:
        assert row.keys() <= {"value", "accepted", "reason"}
        assert len(row["reason"].split()) >= 3
        assert not row["reason"].endswith(".")


def test_the_reference_is_what_the_sources_say():
    """Written by build/reference.py."""
    words = [sys.executable, str(ROOT / "build" / "reference.py"), "--check"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
