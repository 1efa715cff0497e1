# SPDX-License-Identifier: GPL-3.0-only
"""Read the metadata of GGUF files without llama.cpp."""
