# SPDX-License-Identifier: GPL-3.0-only
"""Replay traces of requests against the scheduler in virtual time. Pure."""
