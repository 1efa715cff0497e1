# SPDX-License-Identifier: GPL-3.0-only
"""Run a dry run and return its result, or what is wrong with the file.

What that process holds itself is taken for what a worker holds alongside its model, so this imports what a
worker imports, and nothing that the daemon alone needs.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from modeld.engine.llama.dry_run import dry_run
from modeld.engine.llama.gguf.facts import GgufError, read_facts
from modeld.engine.protocol import LoadSpec
from modeld.errors import ModeldError, ModelFailed
from modeld.worker.messages import DryRunReply
from modeld.worker.process_stats import own_bytes


def dry_run_of(load: LoadSpec, memory: int) -> DryRunReply:
    """Ask llama.cpp what a model takes; `memory`: bytes that this process may have."""
    for name in ("modeld.worker.child", "modeld.engine.llama.engine"):
        importlib.import_module(name)  # All that a worker has in memory is to be counted.
    try:
        facts = read_facts(Path(load.path)) if load.facts is None else load.facts
        return DryRunReply(run=dry_run(load, facts, own_bytes))
    except ModeldError as error:
        return DryRunReply(problem=error.as_problem())
    except (GgufError, OSError) as error:
        return _failed(f"{load.model_id} cannot be read: {error}")
    except MemoryError:
        return _failed(f"{load.model_id} needs more than {memory >> 20} MiB to be looked at")
    except Exception as error:  # noqa: BLE001  # the wall: told as the answer of this process, which ends
        return _failed(f"{load.model_id} cannot be looked at: {error!r}")


def _failed(why: str) -> DryRunReply:
    return DryRunReply(problem=ModelFailed(why).as_problem())
