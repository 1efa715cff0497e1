# SPDX-License-Identifier: GPL-3.0-only
"""Settings that contradict each other: a warning that says which, and what happens."""

import json

import pytest
from click.testing import CliRunner

from modeld.cli.main import modeld
from modeld.config.load import ConfigError, load_settings
from modeld.config.rules import drain_patience, fleet_stop_s
from modeld.config.settings import Settings


def warnings_of(**flags: object) -> tuple[str, ...]:
    return load_settings(flags=flags, environ={"HOME": "/home/op"}, cores=lambda: 3).warnings


CONTRADICTIONS = {
    "drain": ({"drain_timeout": "10s"}, ["--drain-timeout: ", "drain_timeout of 10s", "5s", "go on for 4s"]),
    "no time to stop": ({"shutdown_timeout": "1s"}, ["--shutdown-timeout: ", "of 2s", "of 1s", "600ms"]),
    "depth": ({"max_queue_depth": "300"}, ["--max-queue-depth: ", "300 is never reached", "lets 256 wait"]),
    "total": ({"max_queue_total": "31"}, ["--max-queue-total: ", "of 32 is never reached", "lets 31 wait"]),
    "depth of a model": (
        {"models": {"a": {"max_queue_depth": 257}}},
        ["--models.a.max_queue_depth: 257 is never reached"],
    ),
    "connections": ({"max_connections": "256"}, ["--max-connections: ", "total of 256", "instead of being"]),
    "turn": ({"max_wait": "2s"}, ["--max-wait: ", "2.667s (max_wait_before_drain and", "refused after 2s"]),
    "quantum": ({"quantum": "20s"}, ["--quantum: ", "only after 30s (quantum and backlog_time)"]),
    "backlog": ({"backlog_time": "28s"}, ["--backlog-time: ", "30s (max_wait_before_drain and"]),
    "residency": ({"min_residency": "1m"}, ["--min-residency: ", "only after 1m (min_residency)"]),
    "infer": ({"infer_timeout": "30s"}, ["--infer-timeout: a max_wait of 30s is never reached", "504"]),
    "retained": ({"llama_prefix_cells": "8193"}, ["--llama-prefix-cells: ", "8193 is more than all 8192"]),
    "cells of a model": (
        {"llama_prefix_cells": "1024", "models": {"a": {"llama_ctx": 512}}},
        ["--models.a.llama_ctx: llama_prefix_cells of 1024 is more than all 512"],
    ),
    "shift": (
        {"llama_prefix_cells": "64", "llama_context_shift": "on"},
        ["--llama-prefix-cells: ", "no effect alongside llama_context_shift", "llama_kv_unified: false"],
    ),
    "main gpu": ({"llama_main_gpu": "0", "llama_ngl": "0"}, ["--llama-main-gpu: ", "llama_ngl: 0"]),
    "split": (
        {"llama_ngl": "0", "models": {"a": {"llama_tensor_split": "1,2"}}},
        ["--models.a.llama_tensor_split: this has no effect with llama_ngl: 0"],
    ),
    "fake": ({"fake": "step_s=1"}, ["--fake: this has no effect without engine: fake"]),
    "fake model": ({"models": {"a": {"fake": "step_s=1"}}}, ["--models.a.fake: this has no effect without"]),
    "share": ({"share_tokens": "100"}, ["--share-tokens: this has no effect without keys"]),
    "hosts alongside keys": (
        {"allowed_hosts": "a.example", "keys_file": "/k"},
        ["--allowed-hosts: this has no effect with keys (keys_file)"],
    ),
    "any host": ({"allowed_hosts": "*"}, ["--allowed-hosts: with * and without keys", "DNS rebinding"]),
    "cors": ({"cors_allowed_methods": "GET"}, ["--cors-allowed-methods: ", "cors_enabled: true"]),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_settings_that_contradict_each_other_are_a_warning_with_both(case: str) -> None:
    """One sentence, at the setting that was given, with the numbers."""
    flags, parts = CONTRADICTIONS[case]
    warned = warnings_of(**flags)
    assert len(warned) == 1
    for part in parts:
        assert part in warned[0]


HARMONY = (
    {"drain_timeout": "4s"},
    {"shutdown_timeout": "1m", "drain_timeout": "59s"},
    {"max_queue_depth": "256"},
    {"max_connections": "257"},
    {"max_wait": "4s"},
    {"infer_timeout": "31s"},
    {"llama_prefix_cells": "8192"},
    {"llama_prefix_cells": "64", "llama_context_shift": "on", "llama_kv_unified": "off"},
    {"llama_prefix_cells": "0", "llama_context_shift": "on"},
    {"llama_main_gpu": "0", "llama_ngl": "1"},
    {"llama_ngl": "0", "models": {"a": {"llama_main_gpu": 0, "llama_ngl": 5}}},
    {"engine": "fake", "fake": "step_s=1"},
    {"share_tokens": "100", "keys_file": "/k"},
    {"cors_allowed_methods": "GET", "cors_enabled": "off"},
    {"allowed_hosts": "*.example.com,gpubox.lan,my_box,10.0.0.1,x.y."},
    {"cors_enabled": "on", "cors_allowed_origins": "app://*,null,tauri://localhost"},
)


@pytest.mark.parametrize("flags", HARMONY, ids=json.dumps)
def test_settings_that_go_together_are_not_warned_of(flags: dict[str, object]) -> None:
    """The nearest values without a contradiction."""
    assert warnings_of(**flags) == ()


def test_check_config_tells_of_a_contradiction_and_still_ends_well() -> None:
    """A line on standard error, exit code 0."""
    result = CliRunner().invoke(modeld, ["check-config", "--drain-timeout", "10s"])
    assert result.exit_code == 0
    assert result.stderr.startswith("modeld: warning: --drain-timeout: a drain_timeout of 10s does not fit")


@pytest.mark.parametrize("name", ["keys_file", "tls_key", "tls_cert"])
def test_events_are_not_written_into_a_file_that_modeld_reads(name: str) -> None:
    """That would destroy it, so it stops the start."""
    files = {"tls_key": "/key", "tls_cert": "/cert", "keys_file": "/keys"}
    with pytest.raises(ConfigError) as caught:
        warnings_of(events_enable="on", events_file=files[name], **files)
    assert len(caught.value.problems) == 1
    assert f"({name}); events would be written into it" in caught.value.problems[0]


@pytest.mark.parametrize(
    ("drain", "stop", "patience", "fleet"),
    [(2.0, 5.0, 2.0, 0.5), (10.0, 5.0, 4.0, 0.5), (2.0, 1.0, 0.6, 0.2), (2.0, 0.0, 0.0, 0.0)],
)
def test_a_stop_leaves_time_for_last_lines_and_for_models(
    drain: float, stop: float, patience: float, fleet: float
) -> None:
    """Draining never takes all of `shutdown_timeout`."""
    settings = Settings(drain_timeout=drain, shutdown_timeout=stop)
    assert drain_patience(settings) == pytest.approx(patience)
    assert fleet_stop_s(settings) == pytest.approx(fleet)
