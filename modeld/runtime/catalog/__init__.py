# SPDX-License-Identifier: GPL-3.0-only
"""The models folder: files, options, adapters."""
