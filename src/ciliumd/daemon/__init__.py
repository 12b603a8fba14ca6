# SPDX-License-Identifier: Apache-2.0
"""
The agent of a node: settings, the parts put together, its socket, its state files.

``app`` builds every part in order and is the only place that knows all of them.
"""
