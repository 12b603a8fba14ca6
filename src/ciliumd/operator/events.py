# SPDX-License-Identifier: Apache-2.0
"""Kubernetes events as the operator tells them; what one is made of is in ``kubernetes.events``."""

from typing import Final

from ciliumd.kubernetes import events
from ciliumd.kubernetes.client import Api, Json

COMPONENT: Final = "cilium-operator"


async def warn(api: Api, about: Json, reason: str, message: str) -> None:
    """Tell whoever looks at *about*, once."""
    await events.warn(api, about, reason, message, component=COMPONENT)
