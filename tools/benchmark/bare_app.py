# SPDX-License-Identifier: GPL-3.0-only
"""Serve a bare Quart-Trio app under plain Hypercorn, which modeld's short requests are measured against.

`bare_app.py SIZE` serves `POST /infer`: it reads the JSON body, and answers with JSON of SIZE bytes.
"""

from __future__ import annotations

import json
import sys
from functools import partial

import trio
from hypercorn.config import Config
from hypercorn.trio import serve  # pyright: ignore[reportUnknownVariableType]  # its app type is partly untyped
from quart import Response, request
from quart_trio import QuartTrio


def make_app(size: int) -> QuartTrio:
    """Return the app."""
    app = QuartTrio("bare", static_folder=None)

    async def infer() -> Response:
        body = await request.get_json()
        empty = json.dumps({"done": True, "content": "", "model": body["model"]})
        filling = "x" * max(0, size - len(empty))
        answer = json.dumps({"done": True, "content": filling, "model": body["model"]})
        return Response(answer, content_type="application/json")

    app.add_url_rule("/infer", "infer", infer, methods=["POST"])
    return app


async def main(size: int) -> None:
    """Serve until the process is ended."""
    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.errorlog = None
    async with trio.open_nursery() as nursery:
        urls = await nursery.start(partial(serve, make_app(size), config))
        print(f"bare app listens on {urls[0]}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]))
