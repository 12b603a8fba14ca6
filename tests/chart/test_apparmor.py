# SPDX-License-Identifier: Apache-2.0
"""The AppArmor profile that the chart ships: it compiles, and lets the agent do what it does and no more."""

import json
import re
import subprocess

import pytest

from chart.conftest import CHART

PROFILE = CHART / "files" / "apparmor.profile"
PARSER = "/usr/sbin/apparmor_parser"
NAME = "ciliumd-agent"
ANNOTATION = "container.apparmor.security.beta.kubernetes.io/"
VALUES = {"securityContext.appArmor.profile": NAME}
# Rules that would take back what the profile is for.
NEVER = (
    "mount",
    "umount",
    "remount",
    "pivot_root",
    "change_profile",
    "file,",
    "capability,",
    "network,",
    "ptrace,",
)


def rules():
    """Its rules, one a line, without comments."""
    lines = (line.strip() for line in PROFILE.read_text().splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def compiled(text):
    """What the parser says of a profile, for the features it knows and not those of this kernel."""
    words = [PARSER, "--skip-cache", "--skip-kernel-load", "--kernel-features=/etc/apparmor.d/abi/3.0"]
    return subprocess.run(words, input=text, capture_output=True, text=True, check=False)


def test_it_compiles(record_property):
    """By AppArmor's own parser, which refuses what it does not know."""
    text = PROFILE.read_text()
    done = compiled(text)
    names = subprocess.run([PARSER, "--names"], input=text, capture_output=True, text=True, check=True)
    data = {"case": "S4", "AppArmor rules": len(rules()) - 3}
    record_property("data", json.dumps(data))

    assert done.returncode == 0, done.stderr
    assert names.stdout.split() == [NAME]
    assert compiled(text.replace("capability bpf", "capability bfp")).returncode != 0
    assert compiled(text.replace("network packet,", "network packed,")).returncode != 0


def test_its_capabilities_are_the_charts(default):
    """One more or one less in either is noticed."""
    found = {rule.removeprefix("capability ").rstrip(",").upper() for rule in rules() if "capability" in rule}
    added = default.container("cilium-agent")["securityContext"]["capabilities"]["add"]
    assert found == set(added)


def test_it_lets_the_agent_write_where_it_is_given_something_to_write(default):
    """Every mount that is not read-only, and nothing else but devices and what is of its own processes."""
    wanted = {
        on["mountPath"]
        for on in default.container("cilium-agent")["volumeMounts"]
        if not on.get("readOnly", False)
    }
    written = [
        re.sub(r"/(\{,\*+\}|\*+)$", "", path).replace("{,var/}", "var/")
        for path, rights in re.findall(r"^(?:owner )?(/\S*) (\w+),$", "\n".join(rules()), re.MULTILINE)
        if "w" in rights
    ]
    ours = {path for path in written if not path.startswith(("/dev", "/proc"))}
    assert ours == wanted


def test_nothing_takes_back_what_it_is_for():
    """No mounting, no other profile, no rule without an object; programs run under it and no other way."""
    assert [rule for rule in rules() if rule.startswith(NEVER)] == []
    executed = re.findall(r"^/\S+ (\w*x\w*),$", "\n".join(rules()), re.MULTILINE)
    assert executed
    assert [rights for rights in executed if "ix" not in rights] == []


@pytest.mark.parametrize("version", ["1.30.0", "1.34.4"])
def test_it_is_asked_for_by_a_field(render, version):
    """For the agent's container alone; what mounts stays without."""
    found = render(VALUES, version=version)
    wanted = {"type": "Localhost", "localhostProfile": NAME}
    kinds = {
        one["name"]: one["securityContext"].get("appArmorProfile")
        for one in (*found.agent["initContainers"], *found.agent["containers"])
    }
    assert kinds.pop("cilium-agent") == wanted
    assert set(kinds.values()) == {None}
    assert "apparmor" not in str(found.of("DaemonSet", "cilium")["spec"]["template"]["metadata"])


def test_it_is_asked_for_by_an_annotation_before_1_30(render):
    """The others keep theirs, and there is one for each container."""
    template = render(VALUES, version="1.29.9").of("DaemonSet", "cilium")["spec"]["template"]
    told = {
        key.removeprefix(ANNOTATION): value
        for key, value in template["metadata"]["annotations"].items()
        if key.startswith(ANNOTATION)
    }
    containers = (*template["spec"]["initContainers"], *template["spec"]["containers"])
    assert told.pop("cilium-agent") == f"localhost/{NAME}"
    assert set(told.values()) == {"unconfined"}
    assert len(told) == len(containers) - 1
    assert "appArmorProfile" not in str(containers)


def test_without_it_and_in_a_cleanup_nothing_is_asked_for(render, default):
    """A name that no node knows keeps the container from starting."""
    for found in (default, render(VALUES | {"cleanup.enabled": "true"})):
        assert "appArmorProfile" not in found.container("cilium-agent")["securityContext"]
