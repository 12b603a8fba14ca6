# SPDX-License-Identifier: Apache-2.0
"""
The vocabulary of ciliumd: labels, identities, addresses, services, endpoints, policies.

Everything here is a frozen value or a pure function of values.  Nothing here parses YAML, keeps
state, or knows maps; see ``resources`` for the former and ``desired`` for the latter.
"""
