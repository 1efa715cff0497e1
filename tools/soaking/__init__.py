# SPDX-License-Identifier: GPL-3.0-only
"""What `tools/soak.py` injects and checks.

run (the loop), daemon (a daemon and its models), resources (what it holds), http_client, results (one fault
and its clients), traffic (usual requests), report; the faults: worker_faults, file_faults, resource_faults,
client_faults, and daemon_faults with shifted_clock. procfs reads what the kernel knows. tests/faults uses
them too.
"""
