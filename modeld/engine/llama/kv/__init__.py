# SPDX-License-Identifier: GPL-3.0-only
"""The KV cache of a context: layout, slots, prefixes."""
