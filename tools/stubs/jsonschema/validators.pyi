# SPDX-License-Identifier: GPL-3.0-only
# See __init__.pyi.

from collections.abc import Mapping
from typing import Any

from referencing import Registry

class _Validator:
    def __init__(self, schema: object, *, registry: Registry[Any]) -> None: ...
    def is_valid(self, instance: object) -> bool: ...

def create(
    meta_schema: Mapping[str, object], validators: Mapping[str, object], *, type_checker: object
) -> type[_Validator]: ...
