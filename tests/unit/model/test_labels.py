# SPDX-License-Identifier: Apache-2.0
"""Labels: their text form, and which a pod has."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciliumd.model.labels import (
    CLUSTER,
    K8S,
    NAMESPACE_LABELS_PREFIX,
    POD_NAMESPACE,
    SERVICE_ACCOUNT,
    Label,
    parse_label,
    pod_labels,
)

pytestmark = pytest.mark.unit

KEYS = st.from_regex(r"[a-z]([a-z0-9./-]{0,20}[a-z0-9])?", fullmatch=True)
VALUES = st.from_regex(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,20}[A-Za-z0-9])?)?", fullmatch=True)


@given(st.builds(Label, st.sampled_from(["k8s", "any", "reserved"]), KEYS, VALUES))
def test_label_text_is_read_back(label: Label) -> None:
    """A label written as text and read again is the same label."""
    assert label == parse_label(str(label))


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("k8s:app=web", Label("k8s", "app", "web")),
        ("app=web", Label("unspec", "app", "web")),
        ("reserved:host", Label("reserved", "host")),
        ("cidr:10.0.0.0/8", Label("cidr", "10.0.0.0/8")),
        ("cidr:2001:db8::/32", Label("cidr", "2001:db8::/32")),
        ("k8s:app=a=b", Label("k8s", "app", "a=b")),
    ],
)
def test_label_texts_of_every_source_are_understood(text: str, label: Label) -> None:
    """Source, key and value are told apart in every form users see."""
    assert label == parse_label(text)


def test_label_without_a_key_is_refused() -> None:
    """A text that names no key is no label."""
    with pytest.raises(ValueError, match="without a key"):
        parse_label("k8s:=web")


def test_pod_has_its_own_its_namespaces_and_its_accounts_labels() -> None:
    """Every label policy may select by is there, each under its own key."""
    labels = pod_labels("shop", {"app": "web"}, {"env": "prod"}, "builder")

    assert labels == {
        Label(K8S, "app", "web"),
        Label(K8S, NAMESPACE_LABELS_PREFIX + "env", "prod"),
        Label(K8S, POD_NAMESPACE, "shop"),
        Label(K8S, SERVICE_ACCOUNT, "builder"),
        Label(K8S, CLUSTER, "default"),
    }


@given(st.dictionaries(st.sampled_from([POD_NAMESPACE, SERVICE_ACCOUNT, CLUSTER, "io.cilium.k8s.x"]), VALUES))
def test_pod_cannot_claim_labels_the_agent_sets(claimed: dict[str, str]) -> None:
    """Whatever a pod writes under the agent's keys, its labels are those of a pod that writes nothing."""
    assert pod_labels("shop", {}, {}, "default") == pod_labels("shop", claimed, {}, "default")
