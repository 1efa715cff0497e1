# SPDX-License-Identifier: GPL-3.0-only
"""What an operator types against a running daemon. `modeld serve` and its workers never import it."""
