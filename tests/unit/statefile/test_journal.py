# SPDX-License-Identifier: Apache-2.0
"""A journal holds what was last written of each key, whatever happens to the file."""

import random
from pathlib import Path

import pytest

from ciliumd.statefile import journal
from ciliumd.statefile.journal import Journal, Records


def written(path: Path, *batches: dict[str, str]) -> Journal:
    """The journal of a process that wrote *batches* and has told everything."""
    one = Journal(path)
    for batch in batches:
        one.append(batch)
    one.commit()
    return one


def held(path: Path) -> dict[str, str]:
    """What the file holds."""
    with Records(path) as records:
        return {key: records.text(key) for key in records}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the journal is."""
    return tmp_path / "journal"


def test_last_record_of_a_key_counts(path: Path) -> None:
    """An empty one ends it; order and bytes of others stay."""
    one = written(path, {"a": "1", "b": "é\u2028"}, {"a": "2", "c": "3"})
    assert held(path) == {"b": "é\u2028", "a": "2", "c": "3"}
    one.append({"a": "", "d": "4"})
    assert held(path) == {"b": "é\u2028", "c": "3", "d": "4"}
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_the_process_before_wrote_stays_until_everything_was_told(path: Path) -> None:
    """A process that ends before it knew everything leaves the file as it was; the next begins anew."""
    written(path, {"a": "1"})
    Journal(path).append({"b": "2"})
    assert held(path) == {"a": "1"}

    one = Journal(path)
    one.append({"c": "3"})
    assert held(path) == {"a": "1"}
    one.commit()
    one.commit()
    assert held(path) == {"c": "3"}
    assert [file.name for file in path.parent.iterdir()] == ["journal"]


def test_nothing_told_is_an_empty_journal(path: Path) -> None:
    """Everything is gone: nothing comes back."""
    written(path, {"a": "1"})
    written(path)
    assert held(path) == {}


@pytest.mark.parametrize("key", ["a\tb", "a\nb"])
def test_what_is_no_line_is_refused(path: Path, key: str) -> None:
    """It would be read as something else."""
    with pytest.raises(ValueError, match="no line"):
        Journal(path).append({key: "1"})
    with pytest.raises(ValueError, match="no line"):
        Journal(path).append({"a": key.replace("\t", "\n")})


def test_space_is_won_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file never holds much more than twice what counts, and the slack."""
    monkeypatch.setattr(journal, "SLACK", 1000)
    one = written(path, {"stays": "x" * 500})
    sizes = []
    for number in range(200):
        one.append({"changes": f"{number:0100}", "gone": "y" * 50})
        one.append({"gone": ""})
        sizes.append(path.stat().st_size)

    assert held(path) == {"stays": "x" * 500, "changes": f"{199:0100}"}
    assert max(sizes) < 1000 + 3 * 1000
    assert min(sizes[10:]) < 1000


def test_file_cut_anywhere_loses_only_what_is_behind_the_cut(path: Path) -> None:
    """Never is half a text read."""
    texts = {f"key-{number}": f'{{"n":{number}}}' * 3 for number in range(10)}
    written(path, texts)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        if size < len(journal.FIRST_LINE):
            with pytest.raises(ValueError, match="no journal"):
                Records(path)
        else:
            complete = whole[:size].count(b"\n") - 1
            assert held(path) == dict(list(texts.items())[:complete])


def test_flipped_bits_lose_their_line_and_no_other(path: Path) -> None:
    """What is read is what was written, or nothing."""
    texts = {f"key-{number}": f'{{"n":{number}}}' for number in range(10)}
    written(path, texts)
    whole = path.read_bytes()
    chance = random.Random(7)
    for _ in range(500):
        damaged = bytearray(whole)
        place = chance.randrange(len(journal.FIRST_LINE), len(whole))
        damaged[place] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        found = held(path)
        assert found.items() <= texts.items()
        assert len(found) >= len(texts) - 2, "a lost end of line takes the next line along"


def test_attempt_that_failed_half_way_does_not_run_into_the_next(path: Path) -> None:
    """As a full disk leaves it."""
    one = written(path, {"a": "1"})
    with path.open("ab") as file:
        file.write(b"0123456789abcdef0123456789abcdefb\t")
    one.append({"b": "2"})
    assert held(path) == {"a": "1", "b": "2"}
    with Records(path) as records:
        assert records.damaged == 1


def test_directory_that_is_gone_is_an_error(tmp_path: Path) -> None:
    """To be told by whoever writes."""
    with pytest.raises(FileNotFoundError):
        Journal(tmp_path / "nosuch" / "journal").append({"a": "1"})
