# SPDX-License-Identifier: Apache-2.0
"""
Tables: the rows everything desired is computed from.  Sources write them, reconcilers follow them.

Pure state on one thread: no I/O, no clock, no tasks.
"""

from ciliumd.model.objects import EndpointSliceRow, NamespaceRow, PodRow
from ciliumd.tables.numbers import NumberTable
from ciliumd.tables.schema import Problem, Snapshot, Tables
from ciliumd.tables.table import DONE, PENDING, Index, Status, StatusKind, Table

__all__ = [
    "DONE",
    "PENDING",
    "EndpointSliceRow",
    "Index",
    "NamespaceRow",
    "NumberTable",
    "PodRow",
    "Problem",
    "Snapshot",
    "Status",
    "StatusKind",
    "Table",
    "Tables",
]
