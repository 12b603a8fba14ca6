# SPDX-License-Identifier: Apache-2.0
"""
Benchmarks: ciliumd beside its peers on one machine, in one run.

Times are told as ratios with an interval, never asserted; beside every time stands a count that is the same
on every machine.  ``run.py`` is the command, each other module measures one thing.  docs/performance.md
says what the figures mean and what they were.
"""
