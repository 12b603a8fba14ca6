# SPDX-License-Identifier: Apache-2.0
"""``OPTION=VALUE`` on the command line: what can be changed while the agent runs."""

from collections.abc import Iterable
from typing import Final

from ciliumd.cli.errors import USAGE, CommandError

_WORDS: Final = {
    **dict.fromkeys(("enabled", "enable", "true", "on", "1"), "Enabled"),
    **dict.fromkeys(("disabled", "disable", "false", "off", "0"), "Disabled"),
}


def switches(texts: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """Options of those *known* by name: ``Enabled`` or ``Disabled``.  CommandError for anything else."""
    names = {name.lower(): name for name in known}
    return dict(_switch(text, names) for text in texts)


def _switch(text: str, names: dict[str, str]) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if name.lower() not in names:
        raise CommandError(
            f"unknown option {name!r}", hint=f"there is {', '.join(sorted(names.values()))}", code=USAGE
        )
    if not separator or value.lower() not in _WORDS:
        raise CommandError(
            f"{text!r} sets nothing", hint=f"write {names[name.lower()]}=Enabled or =Disabled", code=USAGE
        )
    return names[name.lower()], _WORDS[value.lower()]
