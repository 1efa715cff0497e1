#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-only
"""Measures modeld on this machine; run it as `./tools/testctl bench`. docs/performance.md explains it.

The work is done by the small files of `benchmark/`, alongside this one.
"""

from __future__ import annotations

import sys

from benchmark.cli import main

if __name__ == "__main__":
    sys.exit(main())
