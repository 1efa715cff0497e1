# SPDX-License-Identifier: GPL-3.0-only
"""The supervisor tree, one file per node."""
