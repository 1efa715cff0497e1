# SPDX-License-Identifier: GPL-3.0-only
"""The endpoints, one file per API."""

from modeld.http.endpoint import Endpoint
from modeld.http.endpoints import anthropic, control, llamacpp, native, observe, ollama, openai

ENDPOINTS: tuple[Endpoint, ...] = (
    *native.ENDPOINTS,
    *control.ENDPOINTS,
    *observe.ENDPOINTS,
    *openai.ENDPOINTS,
    *anthropic.ENDPOINTS,
    *ollama.ENDPOINTS,
    *llamacpp.ENDPOINTS,
)
"""All that the daemon serves."""

__all__ = ["ENDPOINTS"]
