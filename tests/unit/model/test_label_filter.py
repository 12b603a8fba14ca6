# SPDX-License-Identifier: Apache-2.0
"""Which labels make an identity, by the rules of Cilium's setting ``labels``."""

import pytest

from ciliumd.model.label_filter import parse_label_filter
from ciliumd.model.labels import labels_text, parse_label

POD = (
    "k8s:app=web",
    "k8s:app.kubernetes.io/name=web",
    "k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=shop",
    "k8s:io.cilium.k8s.policy.cluster=default",
    "k8s:io.cilium.k8s.policy.serviceaccount=default",
    "k8s:io.kubernetes.pod.namespace=shop",
)
NOISE = (
    "k8s:apps.kubernetes.io/pod-index=0",
    "k8s:batch.kubernetes.io/controller-uid=1",
    "k8s:beta.kubernetes.io/os=linux",
    "k8s:controller-revision-hash=1",
    "k8s:controller-uid=1",
    "k8s:io.kubernetes.container.name=a",
    "k8s:k8s.io/a=b",
    "k8s:kubernetes.io/os=linux",
    "k8s:pod-template-generation=1",
    "k8s:pod-template-hash=1",
    "k8s:statefulset.kubernetes.io/pod-name=web-0",
)
ALWAYS = POD[2:]


def kept(setting: str, *labels: str) -> tuple[str, ...]:
    """Those of the labels that the setting keeps."""
    return labels_text(parse_label_filter(setting).keep(map(parse_label, labels)))


def test_default_leaves_out_what_differs_between_pods_of_a_workload():
    """And what Kubernetes puts on objects by itself."""
    assert POD == kept("", *POD, *NOISE)


def test_excluding_terms_leave_out_more():
    """Beginnings of keys; of one source only if it is named."""
    assert ALWAYS == kept("!app", *POD)
    assert ALWAYS == kept("!k8s:app", *POD)
    assert ALWAYS == kept("k8s:!app", *POD)
    assert POD == kept("!container:app", *POD)
    assert POD == kept("!web", *POD), "the middle of a key is no beginning"


def test_including_terms_leave_out_all_others():
    """Except namespace, cluster and service account, without which policies mean other pods."""
    assert ("k8s:app=web", *ALWAYS) == kept("k8s:app$", *POD, *NOISE)
    assert ("k8s:app=web", "k8s:app.kubernetes.io/name=web", *ALWAYS) == kept("app", *POD, "k8s:tier=a")


def test_longest_inclusion_wins_over_shorter_exclusion():
    """A part of what is excluded may be wanted."""
    setting = r"kubernetes\.io/os"
    assert ("k8s:kubernetes.io/os=linux",) == kept(setting, "k8s:kubernetes.io/os=linux", "k8s:app=web")


def test_reserved_labels_stay():
    """Whatever the setting says."""
    assert ("reserved:host",) == kept("k8s:app", "reserved:host")


@pytest.mark.parametrize("setting", ["k8s:", ":app", "!", "a b ["])
def test_setting_that_means_nothing_is_refused(setting):
    """The term is named."""
    with pytest.raises(ValueError, match=r"is no (label|regular expression)"):
        parse_label_filter(setting)
