#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-only
"""Soaks modeld in faults on this machine; run it as `./tools/testctl soak`. docs/testing.md explains it.

The work is done by the small files of `soaking/`, alongside this one.
"""

from __future__ import annotations

import sys

from soaking.cli import main

if __name__ == "__main__":
    sys.exit(main())
