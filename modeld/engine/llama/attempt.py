# SPDX-License-Identifier: GPL-3.0-only
"""The wall around one request's preparation: whatever breaks in it ends this request and no other."""

from __future__ import annotations

from collections.abc import Callable

from modeld.engine.llama.library import logger
from modeld.engine.protocol import Broken, Output
from modeld.errors import EngineFailed, ModeldError


def attempt(
    model_id: str,
    request_id: int,
    prepare: Callable[[], None],
    outputs: list[Output],
    *,
    later: tuple[type[Exception], ...] = (),
) -> None:
    """Prepare a request; what is wrong with it, or with this program, goes to `outputs` as its end.

    Raises: what is `later`, which says that it is not ready yet.
    """
    try:
        prepare()
    except later:
        raise
    except ModeldError as error:
        outputs.append(Broken(id=request_id, problem=error.as_problem()))
    except Exception as error:  # noqa: BLE001  # our defect: logged, and told to its request alone
        logger.exception("%s: a request could not be prepared", model_id)
        fault = EngineFailed(f"{model_id}: this request could not be prepared: {error!r}")
        outputs.append(Broken(id=request_id, problem=fault.as_problem()))
