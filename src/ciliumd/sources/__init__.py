# SPDX-License-Identifier: Apache-2.0
"""
Where objects come from: read, parse, write rows into tables, stop.

What is wrong with an object becomes a row of ``problems``; nothing here knows what rows are good for.
"""
