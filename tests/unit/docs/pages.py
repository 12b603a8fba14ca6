# SPDX-License-Identifier: Apache-2.0
"""What the pages of documentation say: commands, blocks, links, names."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PROGRAMS = ("cilium", "cilium-dbg", "cilium-health", "ciliumd", "build/dev")
WRAPPERS = ("kubectl", "ctr")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_SPAN = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_ELLIPSIS = "..."


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its language ("" for commands and drawings), its text, the line it begins at."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True, slots=True)
class Command:
    """A command somebody may copy; *whole* if it stands in a block, and not in a sentence."""

    where: str
    words: tuple[str, ...]
    whole: bool

    def __str__(self) -> str:
        return f"{self.where} {' '.join(self.words)}"


@cache
def pages() -> tuple[Path, ...]:
    """Every page for people who read, in order."""
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    return (*sorted(found), ROOT / "datapath" / "README.md", ROOT / "charts" / "ciliumd" / "README.md")


def page(name: str) -> str:
    """The text of a page by its path in the checkout."""
    return (ROOT / name).read_text()


@cache
def blocks(path: Path) -> tuple[Block, ...]:
    """The fenced blocks of a page."""
    text = path.read_text()
    return tuple(
        Block(path, text.count("\n", 0, found.start()) + 2, found[1], found[2])
        for found in _FENCE.finditer(text)
    )


def prose(path: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", path.read_text())


def spans(path: Path) -> Iterator[str]:
    """What stands between backquotes in the sentences of a page; one that is broken into lines is whole."""
    for found in _SPAN.finditer(prose(path)):
        yield " ".join(found[1].split())


def links(path: Path) -> Iterator[str]:
    """Targets of links."""
    return (found[1] for found in _LINK.finditer(prose(path)))


def anchors(path: Path) -> set[str]:
    """Names that headings of a page get where it is shown."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def lines(block: Block) -> Iterator[str]:
    """The commands of a block, those over several lines as one."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if line.strip():
            yield line.strip()


def words_of(line: str) -> tuple[str, ...]:
    """A line as a shell takes it, without comment and ``&``; empty if it is none a shell would take."""
    try:
        found = shlex.split(line.removeprefix("$ "), comments=True)
    except ValueError:
        return ()
    return tuple(word for word in found if word != "&")


def unwrapped(words: tuple[str, ...]) -> tuple[str, ...]:
    """The command of ours in it, also when another program starts it; empty if there is none."""
    if not words or words[0] in PROGRAMS:
        return words
    if words[0] not in WRAPPERS:
        return ()
    behind = words[words.index("--") + 1 :] if "--" in words else words[1:]
    starts = [number for number, word in enumerate(behind) if word in PROGRAMS and number + 1 < len(behind)]
    if words[0] == "kubectl" and "--" not in words:
        return ()
    return behind[starts[0] :] if starts else ()


def started(words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The commands of ours in a line, those behind ``&&`` too."""
    for is_and, part in groupby(words, lambda word: word == "&&"):
        found = () if is_and else unwrapped(tuple(part))
        if found:
            yield found


def commands() -> Iterator[Command]:
    """Every command of ours that the pages show; ``add|del`` is two."""
    for path in pages():
        where = str(path.relative_to(ROOT))
        for block in blocks(path):
            if not block.language:
                found = (words for line in lines(block) for words in started(words_of(line)))
                yield from (Command(str(block), words, whole=True) for words in found)
        for span in spans(path):
            for words in started(words_of(span)):
                if len(words) > 1 and _ELLIPSIS not in words:
                    yield from (Command(where, one, whole=False) for one in alternatives(words))


def alternatives(words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The commands that one with ``a|b`` in it stands for."""
    for number, word in enumerate(words):
        if "|" in word:
            for one in word.split("|"):
                yield from alternatives((*words[:number], one, *words[number + 1 :]))
            return
    yield words
