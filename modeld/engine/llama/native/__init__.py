# SPDX-License-Identifier: GPL-3.0-only
"""Thin wrappers of the llama.cpp library: model, batch, vocabulary, devices."""
