# SPDX-License-Identifier: Apache-2.0
"""Fuzzers of everything that reads what others wrote; see ``__main__`` and ``targets``."""
