# SPDX-License-Identifier: Apache-2.0
"""
Tables: the rows everything desired is computed from.  Sources write them, reconcilers follow them.

Pure state on one thread: no I/O, no clock, no tasks.
"""

from ciliumd.model.objects import EndpointSliceRow, NamespaceRow, PodRow
from ciliumd.tables.numbers import NumberTable
from ciliumd.tables.schema import Problem, Tables
from ciliumd.tables.table import Index, Table

__all__ = [
    "EndpointSliceRow",
    "Index",
    "NamespaceRow",
    "NumberTable",
    "PodRow",
    "Problem",
    "Table",
    "Tables",
]
