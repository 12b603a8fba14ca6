# SPDX-License-Identifier: Apache-2.0
"""What is fed to parsers and programs at random: ``python -m fuzz.parsers``, ``python -m fuzz.programs``."""
