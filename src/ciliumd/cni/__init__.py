# SPDX-License-Identifier: Apache-2.0
"""
The Container Network Interface, spec versions 0.3.0 to 1.1.0: how container runtimes make pods.

Runtimes start ``cilium-cni`` (``executable/``, in C), which passes each request to the agent; ``server``
takes it there.  ``conf`` puts the configuration where runtimes look, ``ciliumd install-cni`` the executable.
"""

from pathlib import Path
from typing import Final

EXECUTABLE: Final = Path(__file__).parent / "bin" / "cilium-cni"
"""What ``build/dev build`` makes and the image has."""
