# SPDX-License-Identifier: Apache-2.0
"""Requests are judged before anything is done: names, versions, and what each command needs."""

import json

import pytest

from ciliumd.cni.errors import CniError, Code
from ciliumd.cni.request import VERSIONS, Attachment, Command, Request

CONFIG = {"cniVersion": "1.1.0", "name": "cilium", "type": "cilium-cni"}
ARGUMENTS = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=a-b"


def decoded(command="ADD", config=(), **changes):
    """The request as it comes from the executable."""
    fields = {
        "command": command,
        "container_id": "c1",
        "netns": "/run/netns/c1",
        "ifname": "eth0",
        "args": ARGUMENTS,
        "path": "/opt/cni/bin",
        "config": CONFIG | dict(config),
        **changes,
    }
    return Request.decode(json.dumps(fields).encode())


def refused(code, text, **fields):
    """It is not taken."""
    with pytest.raises(CniError, match=text) as caught:
        decoded(**fields)
    assert caught.value.code is code
    return caught.value


def test_a_request_says_which_pod_and_which_device():
    """By the arguments Kubernetes runtimes pass."""
    request = decoded()
    assert request.command is Command.ADD
    assert request.attachment == ("c1", "eth0")
    assert request.pod == ("shop", "web-0")
    assert str(request.pod) == "shop/web-0"


@pytest.mark.parametrize("arguments", ["", "K8S_POD_NAME=web", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=", ";;="])
def test_without_a_pod_there_is_nothing_to_do(arguments):
    """Code 4 names the variable."""
    with pytest.raises(CniError, match="CNI_ARGS") as caught:
        _ = decoded(args=arguments).pod
    assert caught.value.code is Code.INVALID_ENVIRONMENT


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("command", "since"), [("ADD", 0), ("DEL", 0), ("CHECK", 2), ("STATUS", 4), ("GC", 4)]
)
def test_commands_belong_to_versions(version, command, since):
    """A configuration of an older version does not allow a newer command."""
    if VERSIONS.index(version) >= since:
        assert decoded(command, {"cniVersion": version}).config.cni_version == version
    else:
        refused(
            Code.INCOMPATIBLE_VERSION,
            f"{command} came with cniVersion {VERSIONS[since]}",
            command=command,
            config={"cniVersion": version},
        )


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "1.2.0", "", "one"])
def test_other_versions_are_refused_with_those_that_are_spoken(version):
    """Code 1."""
    error = refused(Code.INCOMPATIBLE_VERSION, "is not spoken", command="ADD", config={"cniVersion": version})
    assert error.details == "supported versions: 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"


def test_an_add_behind_another_plugin_is_refused():
    """We make the device."""
    refused(Code.UNSUPPORTED_FIELD, "prevResult", command="ADD", config={"prevResult": {}})


def test_a_check_needs_the_result_before():
    """Code 7; an empty one is one."""
    assert decoded("CHECK", {"prevResult": {}}).previous == {}
    with pytest.raises(CniError, match="CHECK needs prevResult") as caught:
        _ = decoded("CHECK").previous
    assert caught.value.code is Code.INVALID_CONFIG


def test_a_gc_says_what_is_valid():
    """Nothing valid is a statement; no statement is a mistake that would cost every pod."""
    valid = {"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0", "extra": 1}]}
    assert decoded("GC", valid).valid_attachments == {Attachment("c1", "eth0")}
    assert decoded("GC", {"cni.dev/valid-attachments": []}).valid_attachments == frozenset()
    with pytest.raises(CniError, match="valid-attachments") as caught:
        _ = decoded("GC").valid_attachments
    assert caught.value.code is Code.INVALID_CONFIG


@pytest.mark.parametrize(
    "config", [{"cniVersion": 1}, {"prevResult": []}, {"cni.dev/valid-attachments": [{}]}]
)
def test_a_bad_configuration_is_code_7(config):
    """The text names the field."""
    refused(Code.INVALID_CONFIG, next(iter(config)), command="DEL", config=config)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b"\xff\xfe", b'{"command": "VERSION"}'])
def test_what_is_no_request_is_code_6(data):
    """Whatever comes in."""
    with pytest.raises(CniError) as caught:
        Request.decode(data)
    assert caught.value.code is Code.DECODING_FAILURE


def test_a_request_cut_anywhere_is_refused():
    """A cut frame cannot happen, and does no harm."""
    whole = decoded().model_dump_json(by_alias=True, exclude_none=True).encode()
    Request.decode(whole)
    for size in range(len(whole)):
        with pytest.raises(CniError):
            Request.decode(whole[:size])
