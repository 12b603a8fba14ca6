# SPDX-License-Identifier: Apache-2.0
"""What runs in a guest: facts about its kernel, then the tests it was asked for, told line by line."""
