# SPDX-License-Identifier: Apache-2.0
"""
The laboratory: nodes, pods and an outside world made of network namespaces on one machine.

Plain modules for tests, demo and benchmarks; pytest is not needed.  Everything that is made here
carries this process's number in its name, is removed when its context ends, and is swept by the
next run if the process was killed.
"""
