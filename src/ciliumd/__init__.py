# SPDX-License-Identifier: Apache-2.0
"""ciliumd: networking, policy and load balancing with prebuilt eBPF; the version lives here."""

__version__ = "0.2.0"
