# SPDX-License-Identifier: GPL-3.0-only
"""Read content in parts: take text, and say why other kinds are refused. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import UNSET, UnsetType

from modeld.dialects.openai.common import AnyJson
from modeld.errors import InvalidRequest


class _Part(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", kw_only=True):
    """A part of a message."""


class TextPart(_Part, tag="text"):
    """Text."""

    text: str


class RefusalPart(_Part, tag="refusal"):
    """An assistant's refusal."""

    refusal: str


class ImageUrl(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Where an image is."""

    url: str
    detail: str | None = None


class ImagePart(_Part, tag="image_url"):
    """An image: refused, since no model with vision is served."""

    image_url: ImageUrl


class AudioPart(_Part, tag="input_audio"):
    """Sound: refused."""

    input_audio: AnyJson


class FilePart(_Part, tag="file"):
    """A file: refused."""

    file: AnyJson


class InputText(_Part, tag="input_text"):
    """Text of a user, in `/v1/responses`."""

    text: str


class OutputText(_Part, tag="output_text"):
    """Text of an assistant, in `/v1/responses`."""

    text: str
    annotations: list[AnyJson] | None = None
    logprobs: list[AnyJson] | None = None


class InputImage(_Part, tag="input_image"):
    """An image: refused, since no model with vision is served."""

    image_url: str | None = None
    file_id: str | None = None
    detail: str | None = None


class InputFile(_Part, tag="input_file"):
    """A file: refused."""

    file_data: str | UnsetType = UNSET
    file_id: str | UnsetType | None = UNSET
    file_url: str | UnsetType = UNSET
    filename: str | UnsetType = UNSET


ChatPart = TextPart | RefusalPart | ImagePart | AudioPart | FilePart
InputPart = InputText | OutputText | RefusalPart | InputImage | InputFile


def text_of(content: str | Sequence[ChatPart | InputPart] | None, place: str) -> str | None:
    """Return the text of a message; parts of text are put together as they are.

    Raises: InvalidRequest for a part that is no text.
    """
    if content is None or isinstance(content, str):
        return content
    texts: list[str] = []
    for number, part in enumerate(content):
        match part:
            case TextPart(text=text) | InputText(text=text) | OutputText(text=text):
                texts.append(text)
            case RefusalPart(refusal=text):
                texts.append(text)
            case ImagePart() | InputImage():
                raise InvalidRequest(
                    f"`{place}[{number}]` is an image, and no model here has vision; send text alone"
                )
            case AudioPart():
                raise InvalidRequest(
                    f"`{place}[{number}]` is audio, and no model here hears; send text alone"
                )
            case FilePart() | InputFile():
                raise InvalidRequest(f"`{place}[{number}]` is a file; send its text as a part of type text")
    return "\n".join(texts)
