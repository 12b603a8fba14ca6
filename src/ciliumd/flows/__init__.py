# SPDX-License-Identifier: Apache-2.0
"""
What became of packets: records of the ring buffer decoded, named and rendered.

``reasons``, ``decode``, ``enrich``, ``filter``, ``render`` and ``maprows`` are pure; ``ring`` alone touches
a kernel object.
"""
