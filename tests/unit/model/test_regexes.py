# SPDX-License-Identifier: Apache-2.0
"""
No pattern that is asked about what users write can be made to take long.

The engine of ``re`` goes back and tries again.  Here every pattern of the package is run by a small engine
that does the same and counts its steps, over texts made to send it back as often as possible.
"""

import importlib
import pkgutil
import re
import re._constants as op
import re._parser as sre
import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest

import ciliumd
from ciliumd.model.label_filter import parse_label_filter

LENGTHS = (32, 64, 128)
# Steps per character: texts of twice the length must not cost more than four times as much, nor much at all.
STEPS_OF_LONGEST = 100_000
END = -1


class Counted:
    """Matches as ``re`` does, and counts."""

    def __init__(self, pattern: str, text: str, flags: int = 0) -> None:
        self._text = text
        self._nodes = list(sre.parse(pattern, flags & re.VERBOSE))
        self.steps = 0

    def run(self) -> bool:
        """Whether the whole text matches."""
        return self._match(self._nodes, 0, lambda at: at == len(self._text))

    def _match(  # noqa: PLR0911  one for each kind of node
        self, nodes: list[Any], at: int, then: Callable[[int], bool]
    ) -> bool:
        self.steps += 1
        if not nodes:
            return then(at)
        (code, argument), rest = nodes[0], nodes[1:]

        def onward(after: int) -> bool:
            return self._match(rest, after, then)

        if code in (op.LITERAL, op.NOT_LITERAL, op.ANY, op.IN):
            return at < len(self._text) and self._fits(code, argument, self._text[at]) and onward(at + 1)
        if code is op.SUBPATTERN:
            return self._match(list(argument[3]), at, onward)
        if code is op.BRANCH:
            return any(self._match(list(one), at, onward) for one in argument[1])
        if code in (op.ASSERT, op.ASSERT_NOT):
            found = self._match(list(argument[1]), at, lambda _at: True)
            return found == (code is op.ASSERT) and onward(at)
        if code is op.AT:
            wanted = 0 if argument in (op.AT_BEGINNING, op.AT_BEGINNING_STRING) else len(self._text)
            return at == wanted and onward(at)
        if code in (op.MAX_REPEAT, op.MIN_REPEAT):
            least, most, inner = argument
            return self._repeat(list(inner), least, most, at, onward)
        raise AssertionError(f"{code} is not known to this engine")

    def _repeat(
        self, inner: list[Any], least: int, most: Any, at: int, onward: Callable[[int], bool]
    ) -> bool:
        # One by one, from the longest back: without recursion where the inner part is one character.
        if len(inner) == 1 and inner[0][0] in (op.LITERAL, op.NOT_LITERAL, op.ANY, op.IN):
            end = at
            while end < len(self._text) and end - at < int(most) and self._fits(*inner[0], self._text[end]):
                end += 1
                self.steps += 1
            return any(onward(back) for back in range(end, at + least - 1, -1))

        def again(count: int, start: int) -> bool:
            def more(after: int) -> bool:
                return after > start and again(count + 1, after)

            if count < int(most) and self._match(inner, start, more):
                return True
            return count >= least and onward(start)

        return again(0, at)

    def _fits(self, code: Any, argument: Any, character: str) -> bool:
        self.steps += 1
        if code is op.ANY:
            return character != "\n"
        if code is op.IN:
            return re.fullmatch(_set(tuple(argument)), character) is not None
        return (ord(character) == argument) == (code is op.LITERAL)


@pytest.fixture(autouse=True)
def deep() -> Iterator[None]:
    """The engine above goes as deep as a text is long."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    yield
    sys.setrecursionlimit(before)


@cache
def _set(members: tuple[Any, ...]) -> re.Pattern[str]:
    """A set of characters as a pattern again; it has no repetition."""
    text = ""
    for code, argument in members:
        if code is op.NEGATE:
            text = "^" + text
        elif code is op.LITERAL:
            text += re.escape(chr(argument))
        elif code is op.RANGE:
            text += f"{re.escape(chr(argument[0]))}-{re.escape(chr(argument[1]))}"
        else:
            text += {op.CATEGORY_DIGIT: r"\d", op.CATEGORY_SPACE: r"\s", op.CATEGORY_WORD: r"\w"}[argument]
    return re.compile(f"[{text}]")


def patterns() -> Iterator[tuple[str, re.Pattern[str]]]:
    """Every pattern that a module of the package keeps."""
    seen: set[str] = set()
    for module in pkgutil.walk_packages(ciliumd.__path__, "ciliumd."):
        if module.name.endswith("__main__"):
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            if isinstance(value, re.Pattern) and isinstance(value.pattern, str) and value.pattern not in seen:
                seen.add(value.pattern)
                yield f"{module.name}.{name}", value


def texts(pattern: str, length: int, flags: int = 0) -> Iterator[str]:
    """Texts of what *pattern* itself is about, with an end it cannot like."""
    letters = sorted(
        {chr(one) for one in _literals(list(sre.parse(pattern, flags & re.VERBOSE)))} | {"a", "0", "-", "."}
    )
    for first in letters:
        for second in letters:
            for end in ("", "!", "\n"):
                yield ((first + second) * length)[: length - len(end)] + end


def _literals(nodes: Any) -> Iterator[int]:
    if isinstance(nodes, list | tuple | sre.SubPattern):
        for node in nodes:
            if isinstance(node, tuple) and len(node) == 2 and node[0] in (op.LITERAL, op.NOT_LITERAL):
                yield node[1]
            elif isinstance(node, tuple) and len(node) == 2 and node[0] is op.RANGE:
                yield node[1][0]
            else:
                yield from _literals(node)


def worst(pattern: str, length: int, flags: int = 0) -> int:
    """The most steps a text of this length takes."""
    most = 0
    for text in texts(pattern, length, flags):
        counted = Counted(pattern, text, flags)
        counted.run()
        most = max(most, counted.steps)
    return most


@pytest.mark.parametrize(("where", "pattern"), list(patterns()), ids=lambda one: str(one)[:40])
def test_steps_of_every_pattern_are_few(where: str, pattern: re.Pattern[str]) -> None:
    """At most with the square of the length, and of names that may have no more characters."""
    steps = [worst(pattern.pattern, length, pattern.flags) for length in LENGTHS]

    assert steps[-1] < STEPS_OF_LONGEST, (where, steps)
    assert steps[-1] <= 5 * steps[-2], (where, steps)


def test_the_engine_says_what_re_says() -> None:
    """Steps of an engine that matches something else would prove nothing."""
    for where, pattern in patterns():
        for text in [
            *texts(pattern.pattern, 12, pattern.flags),
            "",
            "a",
            "10.0.0.0/8",
            "a.b-c",
            "80",
            "1h30m",
        ]:
            assert Counted(pattern.pattern, text, pattern.flags).run() == bool(pattern.fullmatch(text)), (
                where,
                text,
            )


def test_a_pattern_that_takes_forever_is_noticed() -> None:
    """The negative control."""
    assert worst("(a+)+b", 16) > 50_000


@pytest.mark.parametrize("term", ["(a+)+", "(a*)*b", "(a|b+)*c", "(x.*)+y", ".*.*.*", "a{1,99}.*b*"])
def test_relevant_labels_take_no_pattern_that_could_take_forever(term: str) -> None:
    """It is matched with every key that a user gives a label."""
    with pytest.raises(ValueError, match="could take forever"):
        parse_label_filter(f"app {term}")


def test_relevant_labels_take_what_is_usually_written() -> None:
    """Repetitions one after the other, a few of them."""
    parse_label_filter(r"k8s:io\.example\..* !.*beta.* app[0-9]+ (foo|bar)-x? reserved:.*")
