# SPDX-License-Identifier: GPL-3.0-only
"""Says in plain words why bytes are not HTTP. Pure.

h11 tells it with the representation of what it read in it; clients get a sentence, and of the bytes
only a short, printable part.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping

SHOWN_BYTES = 60
"""Of what a client sent, so much is shown to it again."""

_TOLD = re.compile(
    r"""(?P<what>.*?):?\ (?:bytearray\()?(?P<data>b(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")).*""",
    re.DOTALL | re.VERBOSE,
)

_SENTENCES: Mapping[str, str] = {
    "illegal request line": "the request line must read METHOD TARGET HTTP/1.1",
    "no request line received": "there is no request line",
    "illegal header line": "a header must read Name: value, without control characters",
    "Illegal header name": "a header's name has a character that may not be there",
    "Illegal header value": "a header's value has a character that may not be there",
    "illegal chunk header": "a chunk of the body must begin with its size, up to 20 hexadecimal digits",
    "malformed chunk footer": "a chunk of the body is longer than the size that it begins with",
    "continuation line at start of headers": "the first header begins with a blank",
    "Missing mandatory Host: header": "the Host header is missing",
    "Found multiple Host: headers": "there is more than one Host header",
    "bad Content-Length": "Content-Length must be a whole number of bytes",
    "conflicting Content-Length headers": "there are two different Content-Length headers",
    "multiple Transfer-Encoding headers": "there is more than one Transfer-Encoding header",
    "Only Transfer-Encoding: chunked is supported": "the only Transfer-Encoding that is taken is chunked",
    "peer unexpectedly closed connection": "it ended in the middle",
}


def why_malformed(told: str) -> str:
    """Return a sentence for the text of an `h11.RemoteProtocolError`."""
    found = _TOLD.fullmatch(told)
    what, data = (found["what"], found["data"]) if found else (told, None)
    if what.startswith("peer closed connection without sending complete message body"):
        return f"the request is not HTTP: its body ended too early {what[what.index('(') :]}"
    sentence = f"the request is not HTTP: {_SENTENCES.get(what, what)}"
    return sentence if data is None else f'{sentence}: "{_shown(ast.literal_eval(data))}"'


def _shown(data: bytes) -> str:
    """Return the first bytes of `data`, with escapes for what is not printable ASCII."""
    text = data[:SHOWN_BYTES].decode("latin-1").encode("unicode_escape").decode("ascii")
    return f"{text}..." if len(data) > SHOWN_BYTES else text
