# SPDX-License-Identifier: Apache-2.0
"""
Makes the kernel hold what ``desired`` computed: trackers, targets, the one loop that writes.

Read DESIGN.md here first.
"""
