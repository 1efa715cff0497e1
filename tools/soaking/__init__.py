# SPDX-License-Identifier: GPL-3.0-only
"""The soak, in the order of a run; tests/faults/ plays the same faults one by one.

cli (options), world (a daemon and its models), rest (what must be true of it when nothing goes on), wire
(clients), procfs (what the kernel knows), traffic (usual requests all the while), workers, files, limits and
storms (the faults), others (faults that need a daemon of their own; shifted is one with another clock), rows
(what a fault did), run (the loop), samples (memory over time), report and plot.
"""
