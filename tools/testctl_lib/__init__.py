# SPDX-License-Identifier: GPL-3.0-only
"""What `tools/testctl` does, with the standard library of Python 3.11 alone.

commands (the command line), environment (.venv, lock files), llama_build (the wheel of llama.cpp for this
CPU), models (the test models), suites (tests, benchmark, soak), lint, demo, doctor. Below them: packages
(virtual environments and pip), steps (long commands), paths (checkout, cache, file locks), terminal.

What takes long (building llama.cpp, fetching the test model) is kept outside the checkout, in $MODELD_CACHE,
else $XDG_CACHE_HOME/modeld, else ~/.cache/modeld, so that the next clone is ready in a minute.
"""
