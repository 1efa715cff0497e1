# SPDX-License-Identifier: GPL-3.0-only
"""Run the `modeld` command as `python -m modeld`."""

from modeld.cli.main import main

if __name__ == "__main__":
    main()
