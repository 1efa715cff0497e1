# SPDX-License-Identifier: GPL-3.0-only
"""Embeddings: jobs, decodes, and the engine of an embedding model."""
