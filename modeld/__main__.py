# SPDX-License-Identifier: GPL-3.0-only
"""`python -m modeld` is `modeld`."""

from modeld.cli.main import main

if __name__ == "__main__":
    main()
