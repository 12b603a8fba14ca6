# SPDX-License-Identifier: Apache-2.0
"""Templates scripts pass to ``-o jsonpath=`` give what kubectl and Cilium give."""

import pytest

from ciliumd.cli.jsonpath import JSONPathError, render

DOCUMENT = {
    "revision": 7,
    "Daemon": {"Version": "1.18.0-ciliumd.0.1.0"},
    "proxy": None,
    "on": True,
    "cni-chaining": {"mode": "none"},
    "dotted.key": "d",
    "items": [{"name": "a", "ports": [1, 2]}, {"name": "b", "ports": [3]}],
}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{.revision}", "7"),
        ("{$.Daemon.Version}", "1.18.0-ciliumd.0.1.0"),
        ("{revision}", "7"),
        ("{.cni-chaining.mode}", "none"),
        ("{.items[*].name}", "a b"),
        ("{.items[*].ports[*]}", "1 2 3"),
        ("{.items[1].name}", "b"),
        ("{.items[-1].name}", "b"),
        ("{.items[9].name}", ""),
        ("{.items[0].*}", "a [1, 2]"),
        ("{.items[0]['name']}", "a"),
        ('{.items[0]["name"]}', "a"),
        ("{['dotted.key']}", "d"),
        (r"{.dotted\.key}", "d"),
        ("{.missing.deeper}", ""),
        ("{.revision.deeper}", ""),
        ("{.proxy}", ""),
        ("{.on}", "true"),
        ("{.Daemon}", '{"Version": "1.18.0-ciliumd.0.1.0"}'),
        ("rev={.revision} v={.Daemon.Version}!", "rev=7 v=1.18.0-ciliumd.0.1.0!"),
        ('{.revision}{"\\n"}{.on}', "7\ntrue"),
        ("{'literal'}", "literal"),
        ("plain", "plain"),
        ("", ""),
    ],
)
def test_template_is_filled(template, text):
    """Names, indexes, wildcards, literals and text around them; what is missing is empty."""
    assert render(template, DOCUMENT) == text


def test_root_alone_is_the_document():
    """``{$}`` and ``{.}`` print everything."""
    assert render("{$}", [1, 2]) == render("{.}", [1, 2]) == "[1, 2]"


@pytest.mark.parametrize(
    "template", ["{.a", "a}", "{.items[?(@.x)]}", "{range .items[*]}", "{.items[0:1]}", "{..a}"]
)
def test_what_is_not_understood_is_refused(template):
    """No guessing: half an answer would be taken for a whole one."""
    with pytest.raises(JSONPathError):
        render(template, DOCUMENT)
