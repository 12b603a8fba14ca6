# SPDX-License-Identifier: Apache-2.0
"""How hypothesis tries its examples: as long as they take, which depends on what else the machine does."""

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
