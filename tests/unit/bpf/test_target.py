# SPDX-License-Identifier: Apache-2.0
"""Targets over arrays: a row of zeros is an absent row."""

from __future__ import annotations

from ciliumd.bpf.target import ROW, WORD, WordsTarget


class Words(list[int]):
    """The mapped array as a list."""

    name = "words"

    def __setitem__(self, row: object, value: object) -> None:
        if not isinstance(row, int) or not 0 <= row < len(self):
            raise IndexError(row)
        super().__setitem__(row, value)  # type: ignore[call-overload]


def test_words_target_hides_zero_rows_and_stores_zero_to_delete() -> None:
    """Load gives what was stored; delete stores zero."""
    words = Words([0] * 4)
    target = WordsTarget(words)  # type: ignore[arg-type]
    assert target.update({ROW.pack(2): WORD.pack(7 << 32 | 1)}) == {}
    assert words == [0, 0, 7 << 32 | 1, 0]
    assert target.load() == {ROW.pack(2): WORD.pack(7 << 32 | 1)}
    assert target.delete([ROW.pack(2), ROW.pack(3)]) == {}
    assert target.load() == {}


def test_a_row_the_array_does_not_have_fails_alone() -> None:
    """The failure carries its key; other rows are stored."""
    words = Words([0] * 2)
    failed = WordsTarget(words).update({ROW.pack(9): WORD.pack(1), ROW.pack(1): WORD.pack(5)})  # type: ignore[arg-type]
    assert list(failed) == [ROW.pack(9)]
    assert words == [0, 5]
