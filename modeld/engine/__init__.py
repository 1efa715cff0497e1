# SPDX-License-Identifier: GPL-3.0-only
"""One model inside llama.cpp, synchronous; knows neither HTTP nor Trio."""
