# SPDX-License-Identifier: GPL-3.0-only
"""Metadata of GGUF files, read without llama.cpp."""
