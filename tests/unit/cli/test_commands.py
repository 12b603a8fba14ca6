# SPDX-License-Identifier: Apache-2.0
"""The command line as a whole: light to import, helpful when mistyped, right exit codes, completion."""

import json
import subprocess
import sys

import pytest

from ciliumd.cli import completion
from ciliumd.cli.main import build_parser
from ciliumd.flows import render, wire
from unit.cli.agent import Lines
from unit.flows.samples import TRACE, VERDICT, flow

HEAVY = (
    "kopf",
    "pydantic",
    "cffi",
    "_cffi_backend",
    "pyroute2",
    "aiohttp",
    "yaml",
    "prometheus_client",
    "ciliumd.abi",
)


@pytest.mark.parametrize("module", ["ciliumd.cli.main", "ciliumd.cli.ciliumd"])
def test_import_loads_the_standard_library_only(module):
    """A probe that runs every few seconds must not import what it does not use."""
    code = f"import sys, {module}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )

    assert done.stdout == "\n"


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["enpoint", "list"], "unknown command 'enpoint'; did you mean 'endpoint'?"),
        (["bpf", "ipcahe", "list"], "did you mean 'ipcache'?"),
        (["service", "lst"], "did you mean 'list'?"),
        (["qqq"], "choose from bpf, build-config, cleanup,"),
        (["identity", "get", "abc"], "invalid int value"),
        (["status", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["status", "-o", "xml"], "unknown format 'xml'; choose from json, yaml, jsonpath=TEMPLATE, table"),
        ([], "the following arguments are required"),
        (["bpf"], "the following arguments are required"),
    ],
)
def test_misuse_is_exit_code_2_with_a_hint(run, words, hint):
    """What was meant, or what there is."""
    assert run.cilium(*words) == 2
    assert hint in run.err
    assert "--help" in run.err
    assert run.out == ""


def test_unreachable_agent_is_exit_code_3(capsys):
    """Why, and the command to paste."""
    from ciliumd.cli.main import main

    assert main(["endpoint", "list", "-H", "/nonexistent.sock"]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "Error: cannot reach the agent at /nonexistent.sock: the socket does not exist\n"
        "Try:   is the agent running? start it with: ciliumd agent\n"
    )


def test_global_options_stand_before_or_behind_the_command(agent, capsys):
    """-H is accepted in both places, as in Cilium."""
    from ciliumd.cli.main import main

    agent.get("healthz", {})
    for words in (
        ["-H", agent.path, "status", "--brief"],
        ["status", "--brief", "--host", f"unix://{agent.path}"],
    ):
        assert main(words) == 0
        assert capsys.readouterr().out == "OK\n"


def test_closed_pipe_is_no_error(agent):
    """``cilium endpoint list | head -1`` ends quietly."""
    agent.get(
        "endpoint", [{"id": n, "status": {"labels": {"security-relevant": ["x" * 500]}}} for n in range(900)]
    )
    command = f"{sys.executable} -m ciliumd.cli.main endpoint list -H {agent.path} | head -1"
    done = subprocess.run(
        ["/bin/bash", "-o", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin"},
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("ENDPOINT")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["end"], ["endpoint"]),
        (["endpoint", ""], ["config", "del", "delete", "get", "health", "labels", "list", "ls"]),
        (["endpoint", "get", ""], ["12", "7"]),
        (["endpoint", "config", ""], ["12", "7"]),
        (["bpf", "policy", "get", "1"], ["12"]),
        (["service", "get", ""], ["3"]),
        (["identity", "get", ""], ["257"]),
        (["map", "get", "cil"], ["cilium_lxc_v1"]),
        (["completion", ""], ["bash", "fish", "zsh"]),
        (["status", "--br"], ["--brief"]),
    ],
)
def test_completion_offers_commands_and_live_names(agent, monkeypatch, words, found):
    """Words of the command tree, and ids the agent knows."""
    monkeypatch.setenv("CILIUM_SOCK", agent.path)
    agent.get("endpoint", [{"id": 7}, {"id": 12}])
    agent.get("service", [{"spec": {"id": 3}}])
    agent.get("identity", [{"id": 257}])
    agent.get("map", {"maps": [{"path": "/x/cilium_lxc_v1"}]})

    assert completion.candidates(build_parser(), words) == found


def test_completion_without_agent_offers_nothing_live(monkeypatch):
    """A dead agent does not break the shell."""
    monkeypatch.setenv("CILIUM_SOCK", "/nonexistent.sock")

    assert completion.candidates(build_parser(), ["endpoint", "get", ""]) == []


def test_bash_completion_works_in_bash(run):
    """The generated script, run by a real bash, fills COMPREPLY."""
    assert run.cilium("completion", "bash") == 0
    script = f"""
        cilium() {{ {sys.executable} -m ciliumd.cli.main "$@"; }}
        {run.out}
        COMP_WORDS=(cilium end); COMP_CWORD=1; _cilium_complete; echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["/bin/bash", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )

    assert done.stdout == "endpoint\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_the_program(run, shell):
    """Every shell has one."""
    assert run.cilium("completion", shell) == 0
    assert "cilium __complete" in run.out


SAMPLES = [flow(), flow(**TRACE), flow(**VERDICT), flow(src_identity=2)]


def test_monitor_prints_a_line_per_event_and_gaps_on_stderr(agent, run):
    """Data on stdout, losses beside it."""
    gap = wire.LostEvents(wire.SUBSCRIBER_QUEUE, 3)
    agent.answers["GET /v1/monitor"] = Lines(wire.to_json(item) for item in [*SAMPLES, gap])

    assert run.cilium("monitor", "-t", "drop,trace", "-t", "policy-verdict", "-n") == 0
    assert run.out.splitlines() == [render.text(item, numeric=True) for item in SAMPLES]
    assert run.err == "3 events lost (OBSERVER_EVENTS_QUEUE)\n"
    assert agent.requests[-1][1] == "/v1/monitor?type=drop%2Cpolicy-verdict%2Ctrace"


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (["--from", "7"], 4),
        (["--from", "12"], 0),
        (["--to", "12"], 4),
        (["--related-to", "7"], 4),
        (["--related-to", "1"], 0),
    ],
)
def test_monitor_filters_by_endpoint(agent, run, words, count):
    """By source, destination or either."""
    agent.answers["GET /v1/monitor"] = Lines(wire.to_json(item) for item in SAMPLES)

    assert run.cilium("monitor", *words) == 0
    assert len(run.out.splitlines()) == count


def test_monitor_json_forms(agent, run):
    """-j as Cilium, --flow-json as Hubble, -v for people."""
    agent.answers["GET /v1/monitor"] = Lines([wire.to_json(SAMPLES[0])])

    run.cilium("monitor", "-j")
    assert json.loads(run.out) == render.monitor_json(SAMPLES[0])
    run.cilium("monitor", "--flow-json")
    assert wire.from_json(json.loads(run.out)) == SAMPLES[0]
    run.cilium("monitor", "-v")
    assert run.out == render.verbose_text(SAMPLES[0]) + "\n"


def test_monitor_refuses_unknown_types(run):
    """Misuse, before the agent is asked."""
    assert run.cilium("monitor", "-t", "drops") == 2
    assert "known are drop, trace, policy-verdict" in run.err
