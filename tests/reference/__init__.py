# SPDX-License-Identifier: Apache-2.0
"""Slow, obvious models that tests judge the datapath by; they import nothing of ciliumd."""
