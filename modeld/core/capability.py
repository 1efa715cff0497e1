# SPDX-License-Identifier: GPL-3.0-only
"""What a model cannot do by what its file says: refused before anything is loaded for it."""

from __future__ import annotations

from modeld.core.models import ModelSpec
from modeld.core.request import EmbedRequest, GenerateRequest, Request, TemplateRequest
from modeld.errors import InvalidRequest, Problem


def unfit(request: Request, spec: ModelSpec) -> Problem | None:
    """Return why this model cannot serve such a request, None if nothing speaks against it."""
    pooling = "" if spec.facts is None else spec.facts.pooling
    match request:
        case GenerateRequest() | TemplateRequest() if pooling:
            reason = (
                f"{spec.id} is an embedding model: it generates no text; POST /embed, or choose another model"
            )
        case EmbedRequest(pooling=asked) if pooling and asked is not None and asked.value != pooling:
            reason = f"{spec.id} pools by {pooling}; leave out `pooling`, or give that (not {asked})"
        case _:
            return None
    return InvalidRequest(reason).as_problem()
