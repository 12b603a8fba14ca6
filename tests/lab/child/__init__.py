# SPDX-License-Identifier: Apache-2.0
"""
What runs inside a namespace: ``python -m lab.child``, standard library only.

Reads one JSON request per line, runs each in a thread of its own, answers with one JSON line each.
Ends with its standard input, so it never outlives the laboratory.
"""
