# SPDX-License-Identifier: Apache-2.0
"""Build scripts are beside each other in build/, not a package."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[3] / "build"))
