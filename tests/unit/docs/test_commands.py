# SPDX-License-Identifier: Apache-2.0
"""Every command line that the pages show is one: the real parsers take it.  Nothing is run."""

import contextlib
import io
import re
import subprocess
import sys
from functools import cache

import pytest
import yaml

from ciliumd.cli import ciliumd, health, main, outer
from ciliumd.cli.errors import CommandError
from ciliumd.daemon import settings as agent
from ciliumd.operator import settings as operator
from unit.docs.pages import ROOT, Command, blocks, commands, lines, pages, spans, words_of

BUILD = (ROOT / "build" / "dev").read_text()
INCOMPLETE = "the following arguments are required"
HELM_OPTIONS = {"--namespace", "-n", "--set", "--reuse-values", "--reset-then-reuse-values", "--wait"}
COMMANDS = list(commands())


def complaint(parse, words):
    """What a parser says against the words; empty when it takes them, or prints its help."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            parse(words)
    except SystemExit as end:
        return said.getvalue() if end.code else ""
    except (CommandError, agent.SettingsInvalid, operator.SettingsInvalid) as error:
        return str(error)
    return ""


def cilium(words):
    """Of an agent, or else of the cluster."""
    of_agent = complaint(main.build_parser().parse_args, words)
    return of_agent and complaint(outer.build_parser().parse_args, words) and of_agent


def ciliumd_(words):
    """Agent and operator have options of their own."""
    if words[:1] == ["agent"]:
        return complaint(agent.read_settings, words[1:])
    if words[:1] == ["operator"]:
        return complaint(operator.read_settings, words[1:])
    return complaint(ciliumd.build_parser().parse_args, words)


@cache
def help_of(*words):
    """The help of a script of this checkout."""
    done = subprocess.run(
        [sys.executable, *words, "--help"],
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}/src:{ROOT}/tests", "PATH": "/usr/sbin:/usr/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def build(words):
    """What build/dev does not know: a command, a layer, an option."""
    command, *rest = (re.sub(r"^\d+/\d+$", "N/M", word) for word in words)
    if not re.search(rf"^\t([\w-]+ \| )*{command}( \| [\w-]+)*\)", BUILD, re.MULTILINE):
        return f"build/dev has no command {command}"
    usage = BUILD.split("set -euo pipefail")[0]
    unknown = [word for word in rest if not re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", usage)]
    if command == "bench":
        known = help_of("tests/bench/run.py")
        unknown = [word for word in unknown if not re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", known)]
    if command == "fuzz":
        known = help_of("-m", "fuzz.parsers")
        unknown = [word for word in unknown if word not in known and not word.isdecimal()]
    return f"build/dev {command} does not know {', '.join(unknown)}" if unknown else ""


PARSERS = {
    "cilium": cilium,
    "cilium-dbg": cilium,
    "cilium-health": lambda words: complaint(health.build_parser().parse_args, words),
    "ciliumd": ciliumd_,
    "build/dev": build,
}


def test_the_pages_show_commands():
    """There is something to judge, of every program, in blocks and in sentences."""
    assert {one.words[0] for one in COMMANDS} == set(PARSERS)
    assert {one.words[0] for one in COMMANDS if one.whole} >= {
        "cilium",
        "cilium-health",
        "ciliumd",
        "build/dev",
    }


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_its_parser_takes_it(command: Command):
    """In a block it is complete; in a sentence it may leave out what it needs."""
    program, *words = command.words
    said = PARSERS[program](words)

    assert not said or (not command.whole and INCOMPLETE in said), said


def test_parsers_do_refuse():
    """The judges above are no rubber stamps."""
    for words in (["statsu"], ["policy", "explain", "--form", "a/b"], ["monitor", "--tpye", "drop"]):
        assert cilium(words)
    assert ciliumd_(["agent", "--manifest-dir", "x"])
    assert ciliumd_(["operator", "--leader"])
    assert build(["dmeo"])
    assert build(["test", "unti"])
    assert build(["bench", "core", "--slow"])


def helm_lines():
    """Words of every helm command in a block."""
    found = (words_of(line) for path in pages() for block in blocks(path) for line in lines(block))
    return [words for words in found if words[:1] == ("helm",)]


@pytest.mark.parametrize("words", helm_lines(), ids=" ".join)
def test_helm_is_told_of_this_chart(words):
    """The release, the chart's directory, and options that are written right."""
    verb, release, *rest = words[1:]

    assert verb in {"install", "upgrade", "rollback", "uninstall"}
    assert release == "cilium"
    assert {word for word in rest if word.startswith("-")} <= HELM_OPTIONS
    if verb in {"install", "upgrade"}:
        assert (ROOT / rest[0] / "Chart.yaml").is_file()


def test_kubectl_is_told_of_what_the_chart_makes():
    """Workloads, container and labels by the names that the templates give them."""
    daemon_set = (ROOT / "charts/ciliumd/templates/cilium-agent/daemonset.yaml").read_text()
    deployment = (ROOT / "charts/ciliumd/templates/cilium-operator/deployment.yaml").read_text()
    shown = [words_of(line) for path in pages() for block in blocks(path) for line in lines(block)]
    shown += [words_of(span) for path in pages() for span in spans(path)]
    kubectl = [words for words in shown if words[:1] == ("kubectl",)]
    named = {
        word.partition("/")[2] for words in kubectl for word in words if re.match(r"(ds|daemonset)/", word)
    }
    containers = {words[words.index("-c") + 1] for words in kubectl if "-c" in words}
    labels = {words[words.index("-l") + 1] for words in kubectl if "-l" in words}

    assert named == {"cilium"}
    assert "\n  name: cilium\n" in daemon_set
    assert containers == {"cilium-agent"}
    assert "- name: cilium-agent\n" in daemon_set
    assert labels == {"k8s-app=cilium", "io.cilium/app=operator"}
    for label in labels:
        assert label.replace("=", ": ") in daemon_set + deployment


def test_files_in_commands_exist():
    """Paths of the checkout in commands lead somewhere."""
    first = re.compile(r"(examples|charts|tests|datapath|src)/\S+")
    shown = [
        word for path in pages() for block in blocks(path) for line in lines(block) for word in words_of(line)
    ]
    paths = {word for word in shown if first.fullmatch(word)}

    assert paths
    for path in paths:
        assert list(ROOT.glob(path)), path


def test_options_in_sentences_exist():
    """``--option`` by itself belongs to one of our programs."""
    helps = [help_of("-m", f"ciliumd.cli.{name}") for name in ("main", "ciliumd", "health")]
    helps += [
        help_of("-m", "ciliumd.cli.main", "cleanup"),
        help_of("-m", "ciliumd.cli.main", "policy", "diff"),
        help_of("-m", "ciliumd.cli.ciliumd", "agent"),
        BUILD,
    ]
    known = set(re.findall(r"--[a-z][\w-]*", "\n".join(helps)))
    known |= set(re.findall(r"--[a-z][\w-]*", help_of("tests/bench/run.py"))) | HELM_OPTIONS
    known |= set(re.findall(r"--[a-z][\w-]*", help_of("-m", "fuzz.parsers")))
    known |= {"--allocate-node-cidrs"}  # kube-controller-manager's
    shown = {span.partition("=")[0].partition(" ")[0] for path in pages() for span in spans(path)}
    options = {word for word in shown if re.fullmatch(r"--[a-z][\w-]*", word)}

    assert options
    assert options <= known


def test_the_help_of_the_chart_says_the_same():
    """The way out that NOTES shows is the one that pages show."""
    notes = (ROOT / "charts/ciliumd/templates/NOTES.txt").read_text()
    operations = (ROOT / "docs/operations.md").read_text()

    assert yaml.safe_load((ROOT / "charts/ciliumd/values.yaml").read_text())["cleanup"]["enabled"] is False
    assert "rollout status daemonset/cilium" in notes
    assert "--reuse-values --set cleanup.enabled=true\n" in operations
