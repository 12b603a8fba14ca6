# SPDX-License-Identifier: Apache-2.0
"""
Numbers about the agent and the datapath, under Cilium's metric names.

``tally`` holds what the agent counts itself, ``collectors`` reads live state through providers at
scrape time, ``registry`` joins them and renders text or JSON.  No globals, no server.
"""
