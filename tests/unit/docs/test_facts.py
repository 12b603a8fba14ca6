# SPDX-License-Identifier: Apache-2.0
"""What the pages say exists does: objects, links, values, metrics, drop reasons, versions, rooms."""

import importlib.util
import json
import re
import sys

import pytest
import yaml

from ciliumd import __version__, abi
from ciliumd.bpf.features import OLDEST_KERNEL
from ciliumd.cli.manifests import judge
from ciliumd.cni.server import POD_SECONDS
from ciliumd.daemon.agent import REALIZE_SECONDS
from ciliumd.flows.reasons import reason_text
from ciliumd.metrics.tally import Tallies
from ciliumd.operator.metrics import Metrics
from ciliumd.operator.nodes import CONDITION
from ciliumd.operator.policies import VALID
from ciliumd.resources import UnknownKind, parser
from ciliumd.resources.crd.kinds import KINDS
from unit.docs.pages import ROOT, anchors, blocks, lines, links, page, pages, prose, spans, words_of

CHART = ROOT / "charts" / "ciliumd"
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
YAML = [block for path in pages() for block in blocks(path) if block.language == "yaml"]
# Pages for those who run it; in others `operator.store` is a module.
OPERATORS = [
    ROOT / name
    for name in (
        "README.md",
        "docs/install.md",
        "docs/support.md",
        "docs/operations.md",
        "charts/ciliumd/README.md",
    )
]
# Pages say what an option is needed for.
PARSE = parser(node_selectors=True)
# Assignments that are no values of the chart: sysctls and conditions.
_NO_VALUE = re.compile(r"(net|user)\..*|[A-Z].*|--.*")


# ---- objects -----------------------------------------------------------------------------------


def accepted(document):
    """Take an object as agent or API server would; raises what they say."""
    try:
        PARSE(document)
    except UnknownKind:
        kind = next(one for one in KINDS if one.kind == document["kind"])
        assert document["apiVersion"] == f"cilium.io/{kind.version}"
        kind.model.model_validate(document)


def test_there_are_examples():
    """Objects and values are among them."""
    documents = [one for block in YAML for one in yaml.safe_load_all(block.text)]

    assert {one.get("kind") for one in documents} >= {
        None,
        "CiliumNetworkPolicy",
        "CiliumClusterwideNetworkPolicy",
        "CiliumNodeConfig",
    }


@pytest.mark.parametrize("block", YAML, ids=str)
def test_yaml_is_accepted(block, tmp_path):
    """An object by its model, and by `ciliumd policy validate`; anything else is values of the chart."""
    for document in yaml.safe_load_all(block.text):
        if "kind" not in document:
            assert [path for path in paths(document) if not is_value(path)] == []
            continue
        accepted(document)
    if "NetworkPolicy" in block.text:
        file = tmp_path / "policy.yaml"
        file.write_text(block.text)
        assert {finding.message for finding in judge(file, parse=PARSE)} == {""}


def test_an_object_with_a_mistake_is_not():
    """The judge above refuses."""
    document = yaml.safe_load(next(block.text for block in YAML if "kind: CiliumNodeConfig" in block.text))
    document["spec"]["default"] = document["spec"].pop("defaults")

    with pytest.raises(ValueError, match="defaults"):
        accepted(document)


# ---- links -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    """Files that exist, headings that are there."""
    for link in links(path):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.is_relative_to(ROOT), link
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_every_page_is_reached_from_the_first():
    """Who begins at README finds all."""
    seen, todo = set(), [ROOT / "README.md"]
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        targets = [
            (path.parent / link.partition("#")[0]).resolve() for link in links(path) if "://" not in link
        ]
        todo += [target for target in targets if target.suffix == ".md"]
        todo += [one for target in targets if target.is_dir() for one in target.glob("*.md")]

    assert set(pages()) - seen == set()


# ---- values of the chart -----------------------------------------------------------------------


def paths(values, before=""):
    """Every path of a tree of values, ends only, with dots."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from paths(value, f"{before}{name}.")
        else:
            yield before + name


def is_value(path):
    """Whether the chart has this value, or a group of values of this name."""
    found = SCHEMA
    for name in path.split("."):
        if "properties" not in found:
            return found.get("type") == "object"
        if name not in found["properties"]:
            return False
        found = found["properties"][name]
    return True


def test_values_in_commands_exist():
    """What ``--set`` is given."""
    shown = [words_of(line) for path in pages() for block in blocks(path) for line in lines(block)]
    names = {
        words[number + 1].partition("=")[0]
        for words in shown
        if words[:1] == ("helm",)
        for number, word in enumerate(words)
        if word == "--set"
    }

    assert names >= {"k8sServiceHost", "k8sServicePort", "cleanup.enabled"}
    assert {name for name in names if not is_value(name)} == set()


@pytest.mark.parametrize("path", OPERATORS, ids=lambda path: str(path.relative_to(ROOT)))
def test_values_in_sentences_exist(path):
    """``a.b`` below a value of the chart, and everything that is given a value."""
    named = set()
    for span in spans(path):
        name, equals, _ = span.partition("=")
        dotted = re.fullmatch(r"[a-z]\w*(\.\w+)+", name, re.IGNORECASE) and name.split(".")[0] in VALUES
        assigned = equals and re.fullmatch(r"[\w.]+", name) and not _NO_VALUE.fullmatch(name)
        if dotted or assigned:
            named.add(name)

    assert named
    assert {name for name in named if not is_value(name)} == set()


def test_capabilities_are_those_of_the_chart():
    """The table with reasons has what the values have, no more and no less."""
    given = VALUES["securityContext"]["capabilities"]
    rows = re.findall(r"^\| `([\w-]+)` \| ([A-Z_]+) \| `[^|]+` \|", page("docs/install.md"), re.MULTILINE)
    said: dict[str, list[str]] = {}
    for container, capability in rows:
        said.setdefault(container, []).append(capability)

    assert {container: sorted(names) for container, names in said.items()} == {
        "cilium-agent": sorted(given["ciliumAgent"]),
        "mount-bpf-fs": sorted(given["mountBpfFs"]),
        "clean-cilium-state": sorted(given["cleanCiliumState"]),
    }
    assert given["mountBpfFs"] == given["mountCgroup"]
    changes = " ".join(page("CHANGELOG.md").split())
    assert ", ".join(f"`{one}`" for one in given["ciliumAgent"][:-1]) in changes


# ---- names -------------------------------------------------------------------------------------


def test_metrics_exist():
    """Names that begin like a metric are one, a map or a device."""
    sources = [ROOT / "src/ciliumd/metrics/collectors.py", ROOT / "src/ciliumd/health/metrics.py"]
    families = {name for file in sources for name in re.findall(r'"(ciliumd?_\w+)"', file.read_text())}
    families |= set(re.findall(r"^# TYPE (\w+)", Metrics().exposition().decode(), re.MULTILINE))
    for tally in Tallies():
        families |= {family.name for family in tally.collect()}
        families |= {f"{family.name}_total" for family in tally.collect()}
    others = set(abi.MAPS) | {"cilium_host", "cilium_net", "cilium_vxlan"}
    shown = {span for path in pages() for span in spans(path) if re.fullmatch(r"ciliumd?_[a-z_0-9]+", span)}
    text = page("docs/operations.md")
    table = set(re.findall(r"^\| `(ciliumd?_\w+)` \|", text[text.index("## Metrics") :], re.MULTILINE))

    assert table
    assert table <= families
    assert shown - families <= others


def test_drop_reasons_are_the_programs():
    """Text and number of each row of the table, and that a program gives it; the new ones are explained."""
    rows = re.findall(r"^\| ([^|]+) \| (\d{3}) \| [^|]+ \|$", page("docs/operations.md"), re.MULTILINE)
    table = {int(number): text for text, number in rows}

    assert set(table) >= {147, 151, 170, 171, 172, 174}
    assert {number: reason_text(number) for number in table} == table
    assert set(table) <= {int(reason) for reason in abi.DropReason}


def test_what_the_symptoms_quote_is_said_somewhere():
    """Texts of errors that operations.md sends people to, as the code has them."""
    code = "\n".join(
        file.read_text()
        for folder in ("cni", "daemon", "kubernetes", "operator", "ipam", "bpf", "health")
        for pattern in ("*.py", "*.c")
        for file in sorted((ROOT / "src/ciliumd" / folder).rglob(pattern))
    )
    text = " ".join(prose(ROOT / "docs/operations.md").split())
    for said, written in {
        "the agent does not answer on": "the agent does not answer on",
        f"is not known to the agent after {POD_SECONDS:g} s": "is not known to the agent after",
        f"its rows are not in the maps after {REALIZE_SECONDS:g} s": "its rows are not in the maps after",
        "no free address": "no free address in",
        "has no spec.ipam.podCIDRs yet": "has no spec.ipam.podCIDRs yet",
        "has no spec.podCIDRs yet": "has no spec.podCIDRs yet",
        "the API server does not know": "the API server does not know",
        "`no free /24 in ...`": "no free /{self.mask_size} in",
        "`PodCIDRConflict`": '"PodCIDRConflict"',
        "`PolicyInvalid`": '"PolicyInvalid"',
        "`node.waiting`": '"node.waiting"',
        "`waiting for objects of the cluster`": '"objects of the cluster"',
        "`self test: ...`": "self test: ",
        "`detached: ...`": "detached: ",
        "`check the layout of cilium_...`": '"check the layout of"',
        "`missing CAP_BPF`": "missing {named}",
        "`cilium-operator-resource-lock`": '"cilium-operator-resource-lock"',
    }.items():
        assert said.strip("`") in text, said
        assert written in code, written


def test_kinds_and_conditions_have_their_names():
    """Each kind we define is in the table, each condition as the operator writes it."""
    support, operations = page("docs/support.md"), page("docs/operations.md")

    assert {kind.kind for kind in KINDS} == set(re.findall(r"Cilium[A-Z]\w+", support)) - {
        "CiliumIdentity"
    } | {"CiliumIdentity"}
    assert f"{VALID}=False" in operations
    assert CONDITION in page("docs/architecture.md")


# ---- versions, rooms, decisions ------------------------------------------------------------------


def test_the_newest_change_is_this_version():
    """CHANGELOG begins with the version of the package."""
    assert re.findall(r"^## (\S+)", page("CHANGELOG.md"), re.MULTILINE)[0] == __version__


def test_platforms_are_those_of_code_and_tests(monkeypatch):
    """Oldest kernel and Kubernetes, and what the test clusters are made of."""
    monkeypatch.syspath_prepend(str(ROOT / "build"))
    spec = importlib.util.spec_from_file_location("k8s_tools", ROOT / "build" / "k8s_tools.py")
    tools = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "k8s_tools", tools)
    spec.loader.exec_module(tools)
    oldest = yaml.safe_load((CHART / "Chart.yaml").read_text())["kubeVersion"]
    support, install = page("docs/support.md"), page("docs/install.md")

    assert f"| Linux | {'.'.join(map(str, OLDEST_KERNEL))} |" in support
    assert f"Linux {'.'.join(map(str, OLDEST_KERNEL))} or newer" in install
    assert f"| Kubernetes | 1.27 | {tools.VERSIONS['k8s.io/kubernetes'].removeprefix('v')} |" in support
    assert "1.27." in oldest
    assert f"| {tools.VERSIONS['helm.sh/helm/v3'].removeprefix('v')} |" in support


def test_as_many_specs_as_are_claimed():
    """The number of conformance specs is that of the list, wherever it is told."""
    specs = (ROOT / "tests/e2e/specs.txt").read_text().splitlines()
    count = sum(line.endswith("[Conformance]") for line in specs if not line.startswith("#"))

    assert f"| Conformance | {count} " in page("README.md")
    assert f"{count} of conformance" in page("docs/support.md")


def test_every_room_is_in_the_table():
    """Rooms of the house are those that architecture.md lists; as many objects as README counts."""
    rooms = {path.name for path in (ROOT / "src/ciliumd").iterdir() if (path / "__init__.py").is_file()}
    rooms |= {path.stem for path in (ROOT / "src/ciliumd").glob("[a-z]*.py")} - {"version"}
    text = page("docs/architecture.md")
    table = text[text.index("## Rooms") : text.index("## Threads")]
    objects = list((ROOT / "datapath/progs").glob("*.bpf.c"))

    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == rooms
    assert len(objects) == 7
    assert "Seven prebuilt objects" in page("README.md")


def test_decisions_are_numbered():
    """One after the other, each under its number, saying what was decided and why."""
    files = sorted((ROOT / "docs/decisions").glob("*.md"))

    assert [int(file.name[:4]) for file in files] == list(range(1, len(files) + 1))
    for number, file in enumerate(files, 1):
        text = file.read_text()
        assert re.search(rf"^# {number}\. ", text, re.MULTILINE), file.name
        assert ("**Decision.**" in text and "**Why.**" in text) or "**Status.** Proposed" in text, file.name


def test_layers_are_those_of_the_tests():
    """CONTRIBUTING names the directories that hold a layer."""
    named = set(re.findall(r"`tests/(\w+)`", page("CONTRIBUTING.md"))) - {"unit/docs"}
    layers = {path.name for path in (ROOT / "tests").iterdir() if list(path.rglob("test_*.py"))}

    assert named == layers
