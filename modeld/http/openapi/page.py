# SPDX-License-Identifier: GPL-3.0-only
"""Render the OpenAPI document as one HTML page without scripts or external files. Pure."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable
from html import escape

from modeld.http.openapi.document import Json

_STYLE = """
:root{color-scheme:light dark;--line:#8884;--soft:#8881}
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:0 auto;padding:1rem 1.2rem 4rem}
h1{margin-bottom:0}h2{margin-top:2.5rem;border-bottom:1px solid var(--line);padding-bottom:.3rem}
code,pre{font:14px/1.45 ui-monospace,monospace}
code{background:var(--soft);padding:.1em .3em;border-radius:4px}
pre{background:var(--soft);padding:.8rem;border-radius:6px;overflow-x:auto}
table{border-collapse:collapse;width:100%;margin:.6rem 0}
th,td{text-align:left;vertical-align:top;padding:.3rem .6rem;border-bottom:1px solid var(--line)}
.method{font-weight:700;text-transform:uppercase;margin-right:.5rem}
details{margin:.6rem 0}summary{cursor:pointer}nav a{margin-right:1rem}
"""

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'sha256-"
    + base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    + "'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Nothing may be loaded or run but the page's own style."""


def docs_page(document: Json) -> str:
    """Return the page."""
    info = document["info"]
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>{escape(info['title'])} API</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info['summary'])}.</p>",
        f'<p>{_prose(info["description"])}</p><p><a href="/openapi.json">openapi.json</a></p><nav>',
        *(f'<a href="#{_anchor(path)}">{escape(path)}</a>' for path in document["paths"]),
        "</nav>",
        *(
            _operation(path, method, operation, anchor=place == 0)
            for path, item in document["paths"].items()
            for place, (method, operation) in enumerate(item.items())
        ),
        "<h2>Values</h2>",
        *(_schema(name, schema) for name, schema in document["components"]["schemas"].items()),
        "</body></html>",
    ]
    return "\n".join(parts)


def _operation(path: str, method: str, operation: Json, *, anchor: bool) -> str:
    place = f' id="{_anchor(path)}"' if anchor else ""
    parts = [
        f'<h2{place}><span class="method">{method}</span>{escape(path)}</h2>',
        f"<p>{_prose(operation['summary'])}. {_prose(operation.get('description', ''))}</p>",
    ]
    if parameters := operation.get("parameters"):
        rows = ((it["name"], it["in"], it["description"]) for it in parameters)
        parts += ["<h3>Parameters</h3>", _table(("Name", "In", "Meaning"), rows)]
    if "requestBody" in operation:
        content = operation["requestBody"]["content"]["application/json"]
        parts.append(f"<h3>Request</h3><p>{_type(content['schema'])}</p>")
        for example in content["examples"].values():
            body = json.dumps(example["value"], separators=(", ", ": "))
            parts.append(f"<pre>{escape(_curl(path, body))}</pre>")
    parts += ["<h3>Answers</h3>", "<table><tr><th>Status</th><th>Meaning</th></tr>"]
    for status, answer in operation["responses"].items():
        parts.append(f"<tr><td>{status}</td><td>{_prose(answer['description'])}")
        for kind, content in answer.get("content", {}).items():
            parts.append(f"<div><code>{escape(kind)}</code> {_type(content['schema'])}</div>")
            if "example" in content:
                example = content["example"]
                text = example if isinstance(example, str) else json.dumps(example, indent=2)
                parts.append(f"<details><summary>Example</summary><pre>{escape(text)}</pre></details>")
        parts.append("</td></tr>")
    return "\n".join([*parts, "</table>"])


def _curl(path: str, body: str) -> str:
    quoted = body.replace("'", "'\\''")
    return f"curl -N http://127.0.0.1:8080{path} -H 'Content-Type: application/json' -d '{quoted}'"


def _schema(name: str, schema: Json) -> str:
    required = schema.get("required", ())
    rows = (
        (key + (" (required)" if key in required else ""), _type(prop), _prose(_meaning(prop)))
        for key, prop in schema.get("properties", {}).items()
    )
    if "enum" in schema:
        values = ", ".join(f"<code>{escape(str(value))}</code>" for value in schema["enum"])
        body = f"<p>One of {values}.</p>"
    else:
        body = _table(("Key", "Type", "Meaning"), rows, raw=True)
    about = _prose(str(schema.get("description", "")))
    return f'<h3 id="{escape(name)}">{escape(name)}</h3><p>{about}</p>{body}'


def _meaning(prop: Json) -> str:
    return str(prop.get("description", ""))


def _type(schema: Json) -> str:
    """Return a schema in a few words, as HTML."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(_type(part) for part in schema[key] if part.get("type") != "null")
    if "enum" in schema:
        return " or ".join(f"<code>{escape(json.dumps(value))}</code>" for value in schema["enum"])
    kind: str | list[str] = schema.get("type", "any")
    words = escape(kind if isinstance(kind, str) else " or ".join(kind))
    if kind == "array" and isinstance(schema.get("items"), dict):
        words = f"list of {_type(schema['items'])}"
    limits = [
        f"{sign} {schema[key]:g}" if isinstance(schema[key], float) else f"{sign} {schema[key]}"
        for key, sign in _LIMITS
        if key in schema
    ]
    return f"{words} {escape(', '.join(limits))}".strip()


_LIMITS = (
    ("minimum", "\N{GREATER-THAN OR EQUAL TO}"),
    ("exclusiveMinimum", ">"),
    ("maximum", "\N{LESS-THAN OR EQUAL TO}"),
    ("exclusiveMaximum", "<"),
)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]], *, raw: bool = False) -> str:
    parts = ["<table><tr>", *(f"<th>{escape(cell)}</th>" for cell in head), "</tr>"]
    for row in rows:
        first, *others = row
        cells = others if raw else [_prose(cell) for cell in others]
        parts.append(f"<tr><td><code>{escape(first)}</code></td>")
        parts += [f"<td>{cell}</td>" for cell in cells]
        parts.append("</tr>")
    return "".join([*parts, "</table>"])


def _prose(text: str) -> str:
    """Return text as HTML, with `code` marked."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))


def _anchor(path: str) -> str:
    return "path-" + path.strip("/").replace(".", "-")
