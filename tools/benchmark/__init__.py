# SPDX-License-Identifier: GPL-3.0-only
"""What `tools/bench.py` measures with.

A file for each mode (long_prompts has two), with its options, its tables and its JSON; options is what they
share. systems (what is measured, behind one interface), daemon, llama_server and bare_loop (its processes),
prompts, load_generator (a process of its own) and clients, figures (statistics), cpu_load (how quiet the
machine was), report, plots. A storm has storm (the run), storm_requests, storm_ledger, worker_memory and
storm_report.
"""
