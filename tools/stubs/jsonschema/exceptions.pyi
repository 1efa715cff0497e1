# SPDX-License-Identifier: GPL-3.0-only
# See __init__.pyi.

class ValidationError(Exception): ...
