# SPDX-License-Identifier: GPL-3.0-only
"""Sampling: chains of llama.cpp samplers, and drafts from the prompt."""
