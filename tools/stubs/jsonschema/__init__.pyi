# SPDX-License-Identifier: GPL-3.0-only
# Types of jsonschema 4.26, which ships none (no py.typed): the parts that modeld may use.

from typing import Any, ClassVar

class Draft202012Validator:
    VALIDATORS: ClassVar[dict[str, Any]]
    TYPE_CHECKER: ClassVar[object]
