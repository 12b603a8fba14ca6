# SPDX-License-Identifier: Apache-2.0
"""CustomResourceDefinitions made from the models; ``python -m ciliumd.resources.crd`` writes them down."""
