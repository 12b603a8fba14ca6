# SPDX-License-Identifier: Apache-2.0
"""Text is aligned as Cilium aligns it, and every format carries the same data."""

import argparse
import json

import pytest
import yaml

from ciliumd.cli.errors import CommandError
from ciliumd.cli.output import check_format, emit, table


def test_columns_are_three_apart_and_at_least_five_wide():
    """As Cilium's tables of services and identities."""
    rows = [("ID", "Frontend", "Backend"), (1, "10.96.0.1:443/TCP", "1 => x"), ("", "", "2 => y")]

    assert table(rows) == (
        "ID   Frontend            Backend\n1    10.96.0.1:443/TCP   1 => x\n                         2 => y\n"
    )


def test_last_cell_of_a_row_widens_nothing():
    """A long last cell does not push the column behind it in other rows."""
    assert table([("a", "a very long last cell"), ("b", "c", "d")], min_width=0) == (
        "a   a very long last cell\nb   c   d\n"
    )


def test_a_row_without_the_column_ends_its_block():
    """Columns align between neighbours only, as elastic tab stops do."""
    rows = [("x:", "wide-wide", "1"), ("y:", "nothing"), ("z:", "w", "2")]

    assert table(rows, min_width=0) == "x:   wide-wide   1\ny:   nothing\nz:   w   2\n"


def test_no_rows_are_no_text():
    """Nothing is not an empty line."""
    assert table([]) == ""


def test_formats_carry_the_same_data(capsys):
    """JSON and YAML parse back to the data; a table is the text as given."""
    data = {"a": [1, {"b": "c"}], "n": None}

    emit(data, "json", "text\n")
    assert json.loads(capsys.readouterr().out) == data
    emit(data, "yaml", "text\n")
    assert yaml.safe_load(capsys.readouterr().out) == data
    emit(data, "jsonpath={.a[1].b}", "text\n")
    assert capsys.readouterr().out == "c\n"
    for wanted in (None, "table"):
        emit(data, wanted, "text\n")
        assert capsys.readouterr().out == "text\n"


def test_bad_template_is_misuse():
    """Exit code 2, with an example."""
    with pytest.raises(CommandError) as caught:
        emit({}, "jsonpath={.a", "")

    assert caught.value.code == 2
    assert "-o jsonpath=" in caught.value.hint


@pytest.mark.parametrize("wanted", ["xml", "jsonpath", ""])
def test_unknown_format_is_refused(wanted):
    """Argparse turns this into a usage error that lists the formats."""
    with pytest.raises(argparse.ArgumentTypeError, match=f"unknown format '{wanted}'; choose from json"):
        check_format(wanted)
