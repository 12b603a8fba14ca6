# SPDX-License-Identifier: Apache-2.0
"""
An interpreter for our own objects, to count what a packet costs: instructions, map operations, helper
calls.

The kernel does not count these, and the function tracer cannot see what the JIT compiles in.  The
interpreter reads the kernel's maps and never writes them; every walk it counts is then run by the kernel,
and both must agree on verdict, packet and mark, or the count is refused.
"""
