# SPDX-License-Identifier: GPL-3.0-only
"""The benchmark, in the order of a run.

cli (options), systems (what is measured, one interface), daemon, llama_server and bare (its processes),
prompts, client (the load generator, a process of its own), throughput, cancel and stream (the
measurements), figures (statistics, pure), noise (how quiet the machine was), report and plot.
"""
