# SPDX-License-Identifier: Apache-2.0
"""
The tc programs under frames nobody wrote down, judged by reference/forwarding.py.

A script is a few frames that run through one hook over empty maps.  What is new about a script is its
signature: what the program returned for each frame, the very drop it took, which bytes it changed, and
the rows that the script left in the maps of flows.  Scripts with a new one join the corpus and are changed
further.  `build/dev fuzz programs` runs it.
"""
