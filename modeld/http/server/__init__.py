# SPDX-License-Identifier: GPL-3.0-only
"""The guarded Hypercorn listener: sockets, connections, HTTP/1.1."""
