# SPDX-License-Identifier: Apache-2.0
"""Which address an endpoint gets.  Pure: allocators hold the sets, callers persist and configure."""
