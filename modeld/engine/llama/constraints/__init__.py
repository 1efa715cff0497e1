# SPDX-License-Identifier: GPL-3.0-only
"""Grammars and JSON schemas that bind the text of a request."""
