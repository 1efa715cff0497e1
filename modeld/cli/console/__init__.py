# SPDX-License-Identifier: GPL-3.0-only
"""Commands that talk to a running daemon. `modeld serve` and its workers never import this package."""
