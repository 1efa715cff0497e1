# SPDX-License-Identifier: GPL-3.0-only
# Of the bindings, modeld uses only the submodules that have a stub here.
