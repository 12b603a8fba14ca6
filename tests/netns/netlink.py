# SPDX-License-Identifier: Apache-2.0
"""Runs the agent's netlink code inside a laboratory namespace; this machine's own is never touched."""

from collections.abc import Callable
from typing import Any

from pyroute2 import IPRoute

from ciliumd.net.namespace import run_in_namespace
from lab.netns import Namespace


def inside(node: Namespace, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """``function(ipr, ...)`` on a fresh thread in *node*."""

    def call() -> Any:
        with IPRoute() as ipr:
            return function(ipr, *args, **kwargs)

    return run_in_namespace(str(node.path), call)
