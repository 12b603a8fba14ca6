# SPDX-License-Identifier: Apache-2.0
"""
The Kubernetes API: objects come in as rows, what this node has to tell goes out.

``watch`` follows objects in a thread of its own, ``store`` knows (purely) which of them are in force, and
``source`` writes them into the tables.  ``node``, ``endpoints`` and ``identities`` publish; they write
kinds of cilium.io only, never an object of a user.
"""
