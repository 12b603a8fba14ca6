# SPDX-License-Identifier: Apache-2.0
"""
The version as clients of Cilium read it.

They gate what they ask for and test by a semantic version, so the version of Cilium that this one is
compatible with comes first and ours behind the dash: ``1.18.4-ciliumd.0.2.0``.
"""

from typing import Final

from ciliumd import __version__

CILIUM_VERSION: Final = "1.18.4"


def cilium_version(own: str = __version__) -> str:
    """Version *own* of ciliumd as clients of Cilium read it."""
    return f"{CILIUM_VERSION}-ciliumd.{own}"
