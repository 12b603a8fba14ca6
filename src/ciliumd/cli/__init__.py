# SPDX-License-Identifier: Apache-2.0
"""
Command lines: ``cilium`` speaks to the agent's socket, ``ciliumd`` runs the agent and feeds it.

One module per noun.  Importing them loads the standard library only; whatever is heavier is imported
by the command that needs it.
"""
