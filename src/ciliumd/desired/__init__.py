# SPDX-License-Identifier: Apache-2.0
"""
What the kernel should hold, as pure functions of rows.

No await, no clock, no randomness, no memory: the same rows give the same result, whatever happened
before.  Ids that must be remembered are rows themselves and come in as arguments.
"""
