# SPDX-License-Identifier: GPL-3.0-only
"""The only package that imports llama_cpp."""
