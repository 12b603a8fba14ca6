# SPDX-License-Identifier: Apache-2.0
"""docs/policy.md: each of its tables is what the resolver says of the policies before it."""

import re
from dataclasses import dataclass, field
from ipaddress import ip_address

import pytest
import yaml

from ciliumd import abi
from ciliumd.daemon.references import References
from ciliumd.desired.cluster import labels_of_node
from ciliumd.desired.identities import labels_of_pod, named_ports_of_pod
from ciliumd.desired.policy import Outside, Party, cidrs, explain
from ciliumd.model.identity import NamedNode, Reserved, reserved_labels
from ciliumd.model.label_filter import EVERY_LABEL
from ciliumd.model.objects import NodeRow
from ciliumd.model.policy import Enforcement
from ciliumd.resources import parser
from ciliumd.resources.ciliumrules import EgressDenyRule, EgressRule, IngressDenyRule, IngressRule, RuleSpec
from ciliumd.tables import Tables
from unit.docs.pages import ROOT

PAGE = ROOT / "docs" / "policy.md"
WORDS = {
    abi.PolicyVerdict.POLICY_VERDICT_ALLOW: "allowed",
    abi.PolicyVerdict.POLICY_VERDICT_DENY: "denied",
    abi.PolicyVerdict.POLICY_VERDICT_DEFAULT_DENY: "default deny",
}
# Fields of rules that are refused, or mean nothing to what is let through.
NOT_SHOWN = {
    *("from_groups", "to_groups", "to_fqdns", "authentication", "node_selector"),
    *("description", "labels", "log"),
}
_PIECE = re.compile(
    r"^```yaml\n(?P<yaml>.*?)^```$|^(?P<table>\| from \|.*?)(?:\n\n|\Z)", re.DOTALL | re.MULTILINE
)
_parse = parser(node_selectors=True)


@dataclass
class Example:
    """Objects, and what becomes of traffic under them, as written."""

    title: str
    documents: list
    rows: list = field(default_factory=list)

    def __str__(self):
        return self.title


def read():
    """The objects of the cluster, and the examples; a table is about the policies right before it."""
    cluster, examples = [], []
    for section in re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE):
        title = section.partition("\n")[0]
        for found in _PIECE.finditer(section):
            if found["yaml"] is not None:
                documents = list(yaml.safe_load_all(found["yaml"]))
                if title.startswith("<!--"):
                    cluster += documents
                else:
                    examples.append(Example(f"{title} {documents[0].get('kind', 'values')}", documents))
            else:
                lines = found["table"].splitlines()[2:]
                cells = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]
                examples[-1].rows += [tuple(row) for row in cells]
    return cluster, examples


CLUSTER, EXAMPLES = read()


class World:
    """The cluster of the page with the policies of one example."""

    def __init__(self, documents):
        self.tables = Tables()
        self.nodes = {}
        values = [one for one in documents if "kind" not in one]
        self.enforcement = Enforcement(values[0]["policyEnforcementMode"]) if values else Enforcement.DEFAULT
        for document in [*CLUSTER, *documents]:
            if document.get("kind") == "Node":
                metadata = document["metadata"]
                self.nodes[metadata["name"]] = NodeRow(metadata["name"], labels=metadata["labels"])
            elif "kind" in document:
                for table, key, row in _parse(document).rows():
                    getattr(self.tables, table).set(key, row)
        references = References(self.tables)
        references.refresh()
        assert references.problems() == {}
        self.policies = list(references.policies.values())
        self.outside = Outside(cidrs(self.policies))

    def party(self, text, number):
        """Somebody of a table."""
        if "/" in text:
            pod = self.tables.pods.get(tuple(text.split("/")))
            labels = labels_of_pod(pod, self.tables.namespaces.get(pod.namespace))
            return Party(number, labels, named_ports=named_ports_of_pod(pod))
        if text.startswith("node "):
            name = text.removeprefix("node ")
            return Party(
                number, labels_of_node(NamedNode(name), self.nodes[name], EVERY_LABEL), is_endpoint=False
            )
        for one in Reserved:
            if one.label == text:
                return Party(int(one), reserved_labels(one), is_endpoint=False)
        return Party(number, self.outside.labels(ip_address(text)), is_endpoint=False)

    def verdict(self, source, destination, port):
        """What becomes of traffic: of what is stopped, by whom it is first."""
        number, _, protocol = port.partition("/")
        found = explain(
            self.policies,
            source=self.party(source, 1001),
            destination=self.party(destination, 1002),
            protocol=protocol,
            port=int(number),
            enforcement=self.enforcement,
        )
        stopped = (one.verdict for one in found.directions if WORDS[one.verdict] != "allowed")
        return WORDS[next(stopped, abi.PolicyVerdict.POLICY_VERDICT_ALLOW)]


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_a_table_is_what_the_policies_mean(example):
    """Row by row; each shows what passes and what does not, or is one row."""
    world = World(example.documents)
    said = [(*row[:3], world.verdict(*row[:3])) for row in example.rows]

    assert said == example.rows
    assert len({row[3] for row in said}) > 1 or len(said) == 1


def test_every_field_has_an_example():
    """Of every kind of rule, and of the specs around them."""
    written = yaml.safe_dump([one.documents for one in EXAMPLES])
    models = (RuleSpec, IngressRule, IngressDenyRule, EgressRule, EgressDenyRule)
    names = {
        one.alias for model in models for name, one in model.model_fields.items() if name not in NOT_SHOWN
    }
    # The other direction's fields mean the same: one of the two is enough.
    shown = {name for name in names if re.search(rf"\b{name}:", written)}
    twin = {"from": "to", "to": "from"}
    missing = {
        name
        for name in names - shown
        if re.sub("^(from|to)(?=[A-Z])", lambda found: twin[found[1]], name) not in shown
    }

    assert missing == set()
    assert {"ingress", "ingressDeny", "egress", "egressDeny"} <= shown
