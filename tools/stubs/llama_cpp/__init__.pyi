# SPDX-License-Identifier: GPL-3.0-only
"""The bindings' own annotations are partial; modeld uses only the module `llama_cpp.llama_cpp`."""
