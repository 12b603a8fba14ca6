# SPDX-License-Identifier: Apache-2.0
"""What the executable answers by itself: versions, bad requests, and an agent that is not there."""

import json
import os
import random
import resource
import subprocess

import pytest

from ciliumd.cni import EXECUTABLE
from ciliumd.cni.request import VERSIONS

POD = {"CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": "/proc/self/ns/net"}
SEED = 20260


def run(command, config=b"{}", *, limit=None, **variables):
    """Exit code and what was printed."""
    done = subprocess.run(
        [EXECUTABLE],
        env={"CNI_COMMAND": command, **variables},
        input=config,
        capture_output=True,
        check=False,
        timeout=10,
        preexec_fn=limit,
    )
    assert done.stderr == b""
    assert done.returncode in {0, 1}
    return done.returncode, json.loads(done.stdout) if done.stdout else None


def refused(code, text, command, config=b"{}", **variables):
    """The answer is this error."""
    status, answer = run(command, config, **variables)
    assert status == 1
    assert answer["code"] == code
    assert text in answer["msg"]
    return answer


def configured(tmp_path, **more):
    """A configuration with places of the test's own."""
    places = {"cni-socket": str(tmp_path / "cni.sock"), "delete-queue": str(tmp_path / "queue")}
    return json.dumps({"cniVersion": "1.1.0", "name": "cilium", **places, **more}).encode()


@pytest.mark.parametrize(
    ("config", "version"), [(b"", "1.1.0"), (b'{"cniVersion":"0.4.0"}', "0.4.0"), (b"{ }", "1.1.0")]
)
def test_versions_are_answered_without_an_agent(config, version):
    """In the version that was asked in."""
    supported = list(VERSIONS)
    assert run("VERSION", config) == (0, {"cniVersion": version, "supportedVersions": supported})


@pytest.mark.parametrize(
    ("variables", "text"),
    [
        ({"CNI_COMMAND": "PLUG"}, "CNI_COMMAND"),
        ({"CNI_COMMAND": ""}, "CNI_COMMAND"),
        ({"CNI_CONTAINERID": ""}, "CNI_CONTAINERID"),
        ({"CNI_CONTAINERID": "../../etc"}, "CNI_CONTAINERID"),
        ({"CNI_CONTAINERID": ".hidden"}, "CNI_CONTAINERID"),
        ({"CNI_CONTAINERID": "a:b"}, "CNI_CONTAINERID"),
        ({"CNI_CONTAINERID": "c" * 201}, "CNI_CONTAINERID"),
        ({"CNI_IFNAME": ""}, "CNI_IFNAME"),
        ({"CNI_IFNAME": "sixteen-letters-"}, "CNI_IFNAME"),
        ({"CNI_IFNAME": ".."}, "CNI_IFNAME"),
        ({"CNI_IFNAME": "a/b"}, "CNI_IFNAME"),
        ({"CNI_IFNAME": "a b"}, "CNI_IFNAME"),
        ({"CNI_NETNS": ""}, "CNI_NETNS is missing"),
        ({"CNI_NETNS": "/no/such"}, "CNI_NETNS: /no/such: No such file"),
        ({"CNI_NETNS": "/dev/null"}, "CNI_NETNS: /dev/null is no network namespace"),
    ],
)
def test_bad_variables_are_code_4_and_named(variables, text):
    """Nothing is asked of anybody."""
    merged = {"CNI_COMMAND": "ADD", **POD, **variables}
    command = merged.pop("CNI_COMMAND")
    assert refused(4, text, command, **merged)["cniVersion"] == "1.1.0"


@pytest.mark.parametrize(
    "config",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b'{"a":}',
        b'{"a" 1}',
        b'{"a":1,}',
        b"{'a':1}",
        b'{"a":01}',
        b'{"a":1.}',
        b'{"a":-}',
        b'{"a":1e}',
        b'{"a":tru}',
        b'{"a":"\\x"}',
        b'{"a":"\\u12g4"}',
        b'{"a":"\n"}',
        b'{"a":"',
        b'{"a":"\\',
        b'{"a":[1,]}',
        b"{}{}",
        b'{}\x00{"hidden":1}',
        b'{"a":' + b"[" * 100 + b"]" * 100 + b"}",
    ],
)
def test_what_is_no_json_object_is_code_6(config):
    """RFC 8259 to the letter, to a bounded depth."""
    refused(6, "is no JSON object", "STATUS", config)


@pytest.mark.parametrize(
    "config",
    [
        b' \t\r\n{ "a" : [ ] , "b" : { } } \n',
        b'{"a":[0,-0,1.5,-2e10,3E-7,4e+2,true,false,null,"\\u00e9\\n\\"\\\\/"],"b":{"c":{"d":[[]]}}}',
        '{"ünï":"cødé"}'.encode(),
    ],
)
def test_what_is_one_is_taken(tmp_path, config):
    """All that JSON has: it goes as far as looking for the agent."""
    whole = config.rstrip()[:-1] + b',"cni-socket":"' + str(tmp_path / "s").encode() + b'"}'
    refused(50, "does not answer", "STATUS", whole)


def test_random_bytes_never_break_it():
    """Cut, changed and swapped configurations: an answer, and no crash."""
    chance = random.Random(SEED)
    sound = bytearray(b'{"cniVersion":"1.1.0","a":[1,{"b":"\\u0041"},null],"cni-socket":"/no/such"}')
    for _ in range(200):
        config = bytearray(sound)
        for _ in range(chance.randint(1, 4)):
            config[chance.randrange(len(config))] = chance.randrange(256)
        del config[chance.randint(len(config) // 2, len(config)) :]
        status, answer = run("STATUS", bytes(config))
        assert status == 1
        assert answer["code"] in {6, 50}


def test_a_configuration_larger_than_any_is_refused():
    """And not read to its end."""
    refused(5, "File too large", "GC", b'{"a":"' + b"x" * (1 << 20) + b'"}')


def test_a_status_without_an_agent_is_code_50(tmp_path):
    """Pods keep their connectivity: it is not 51."""
    answer = refused(50, "is the cilium pod of this node running?", "STATUS", configured(tmp_path))
    assert answer["cniVersion"] == "1.1.0"


def test_a_gc_without_an_agent_is_to_be_tried_again(tmp_path):
    """Code 11."""
    refused(11, "does not answer", "GC", configured(tmp_path))


def test_a_del_without_an_agent_is_queued_once(tmp_path):
    """Success each time, without namespace too; one entry, an empty file."""
    for _ in range(3):
        assert run("DEL", configured(tmp_path), CNI_CONTAINERID="c1", CNI_IFNAME="eth0") == (0, None)
    (entry,) = (tmp_path / "queue").iterdir()
    assert (entry.name, entry.read_bytes()) == ("c1:eth0", b"")


def test_the_queue_is_bounded(tmp_path):
    """Full, a DEL is to be tried again, and tells where it wanted to write."""
    (tmp_path / "queue").mkdir()
    for number in range(1024):
        (tmp_path / "queue" / f"c{number}:eth0").touch()
    refused(
        11,
        f"{tmp_path}/queue/new:eth0",
        "DEL",
        configured(tmp_path),
        CNI_CONTAINERID="new",
        CNI_IFNAME="eth0",
    )
    assert len(list((tmp_path / "queue").iterdir())) == 1024


def test_a_queue_that_cannot_be_written_is_told(tmp_path):
    """Its place is a file."""
    (tmp_path / "queue").touch()
    refused(11, "Not a directory", "DEL", configured(tmp_path), CNI_CONTAINERID="c1", CNI_IFNAME="eth0")


def test_errors_are_logged_in_a_file_that_does_not_grow_for_ever(tmp_path):
    """One file before it is kept."""
    log = tmp_path / "cni.log"
    config = configured(tmp_path, **{"log-file": str(log)})
    run("STATUS", config)
    first = log.read_text()
    assert "level=error" in first
    assert "command=STATUS" in first
    log.write_bytes(b"x" * (1 << 20))
    run("STATUS", config)
    assert (tmp_path / "cni.log.1").stat().st_size == 1 << 20
    assert log.read_text().count("\n") == 1


def test_debug_lines_are_written_when_asked_for(tmp_path):
    """One that says why the agent was not reached."""
    log = tmp_path / "cni.log"
    run("STATUS", configured(tmp_path, **{"log-file": str(log), "enable-debug": True}))
    assert "level=debug" in log.read_text()


def test_a_log_that_cannot_be_written_changes_nothing(tmp_path):
    """The answer is the same."""
    config = configured(tmp_path, **{"log-file": str(tmp_path / "none" / "cni.log")})
    refused(50, "does not answer", "STATUS", config)


def test_without_memory_it_says_so():
    """An answer in JSON even then."""

    def limit():
        resource.setrlimit(resource.RLIMIT_DATA, (600_000, 600_000))

    status, answer = run("STATUS", limit=limit)
    assert (status, answer["code"]) == (1, 5)
    assert os.strerror(12) in answer["msg"]
