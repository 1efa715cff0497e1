# SPDX-License-Identifier: GPL-3.0-only
"""The OpenAPI document and the page that shows it. Pure."""
