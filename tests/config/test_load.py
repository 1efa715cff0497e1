# SPDX-License-Identifier: GPL-3.0-only
"""Settings from flags, environment and file: precedence, problems, warnings."""

import json
import typing
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeld.config.load import ConfigError, LoadedSettings, load_settings
from modeld.config.model_settings import ModelSettings
from modeld.config.settings import AUTO, LEGACY, MODEL_SETTINGS, SETTINGS, Settings
from modeld.domain.model import Isolation

FIXTURES = Path(__file__).parent / "fixtures"


def load(
    flags: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    file: str | None = None,
    folder: Path | None = None,
) -> LoadedSettings:
    given = dict(flags or {})
    if file is not None and folder is not None:
        path = folder / "modeld.yaml"
        path.write_text(file, encoding="utf-8")
        given["config"] = str(path)
    return load_settings(flags=given, environ={"HOME": "/home/op", **(environ or {})}, cores=lambda: 3)


def problems(*args: object, **kwargs: object) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(*args, **kwargs)
    return caught.value.problems


def test_without_anything_all_is_default() -> None:
    """Nothing given: the defaults, with cores and folders of this machine, and no sources."""
    loaded = load()
    assert loaded.warnings == ()
    assert loaded.sources == {}
    assert loaded.settings.addr == "127.0.0.1:8080"
    assert loaded.settings.llama_threads == 3
    assert loaded.settings.state_dir == Path("/home/op/.local/state/modeld")
    assert loaded.settings.models_dir == Path("~/models/llm").expanduser()


def test_a_flag_beats_the_environment_beats_the_file(tmp_path: Path) -> None:
    """Each setting is taken from the strongest place that has it."""
    file = "addr: ':1'\nmax_wait: 1s\nmax_queue_depth: 1\n"
    loaded = load({"addr": ":3"}, {"MODELD_ADDR": ":2", "MODELD_MAX_WAIT": "2s"}, file, tmp_path)
    assert loaded.settings.addr == ":3"
    assert loaded.settings.max_wait == 2.0
    assert loaded.settings.max_queue_depth == 1
    assert loaded.sources == {
        "config": "--config",
        "addr": "--addr",
        "max_wait": "MODELD_MAX_WAIT",
        "max_queue_depth": str(tmp_path / "modeld.yaml"),
    }


SAMPLES: Mapping[str, tuple[str, object]] = {
    "addr": (":1", ":1"),
    "allowed_hosts": ("gpubox.lan, *.example.com", ("gpubox.lan", "*.example.com")),
    "models_dir": ("/m", Path("/m")),
    "default_model": ("tiny", "tiny"),
    "state_dir": ("/s", Path("/s")),
    "dry_runs": ("off", False),
    "vram_budget_mb": ("auto", None),
    "vram_margin_mb": ("7", 7),
    "vram_watch": ("false", False),
    "models": ('{"a": {"ttl": "5m"}}', {"a": ModelSettings(ttl=300.0)}),
    "max_body_bytes": ("2MiB", 2097152),
    "max_header_bytes": ("16KiB", 16384),
    "max_connections": ("100", 100),
    "header_timeout": ("3s", 3.0),
    "body_timeout": ("2m", 120.0),
    "idle_timeout": ("20s", 20.0),
    "max_queue_depth": ("5", 5),
    "max_queue_total": ("70", 70),
    "max_wait_before_drain": ("3s", 3.0),
    "quantum": ("0", 0.0),
    "backlog_time": ("4s", 4.0),
    "min_residency": ("250ms", 0.25),
    "evict_timeout": ("1m", 60.0),
    "cut_streams": ("yes", True),
    "max_wait": ("1m30s", 90.0),
    "infer_timeout": ("500ms", 0.5),
    "write_timeout": ("7s", 7.0),
    "stall_timeout": ("8s", 8.0),
    "max_stream_backlog": ("64KiB", 65536),
    "strict_bodies": ("true", True),
    "drain_timeout": ("9s", 9.0),
    "shutdown_timeout": ("0", 0.0),
    "llama_ctx": ("4096", 4096),
    "llama_slots": ("2", 2),
    "llama_threads": ("1", 1),
    "llama_ngl": ("12", 12),
    "llama_main_gpu": ("1", 1),
    "llama_tensor_split": ("3,3,1.5", (3.0, 3.0, 1.5)),
    "llama_flash_attn": ("on", True),
    "llama_kv_type": ("BF16", "bf16"),
    "llama_ubatch": ("128", 128),
    "llama_mmap": ("no", False),
    "llama_kv_unified": ("false", False),
    "llama_context_shift": ("true", True),
    "llama_prefix_cells": ("1024", 1024),
    "isolation": ("Thread", "thread"),
    "log_level": ("debug", "debug"),
    "log_format": ("json", "json"),
    "events_enable": ("yes", True),
    "events_file": ("/e", Path("/e")),
    "events_max_bytes": ("1MiB", 2**20),
    "events_keep": ("7", 7),
    "cors_enabled": ("false", False),
    "cors_allowed_origins": ("*", ("*",)),
    "cors_allowed_methods": ("GET, PUT", ("GET", "PUT")),
    "cors_allowed_headers": ("Accept", ("Accept",)),
    "tls_cert": ("/c.pem", Path("/c.pem")),
    "tls_key": ("/k.pem", Path("/k.pem")),
    "keys_file": ("/k/keys.yaml", Path("/k/keys.yaml")),
    "require_keys": ("true", True),
    "share_tokens": ("4096", 4096),
    "engine": ("fake", "fake"),
    "fake": ("tokens=3", "tokens=3"),
}
_FILE = {"events_enable": "on", "events_file": "/e"}
NEEDED = {
    "events_file": {"events_enable": "on"},
    "events_max_bytes": _FILE,
    "events_keep": _FILE,
    "cors_allowed_origins": {"cors_enabled": "on"},
    "tls_cert": {"tls_key": "/k.pem"},
    "tls_key": {"tls_cert": "/c.pem"},
}


@pytest.mark.parametrize("name", SAMPLES)
def test_every_setting_exists_in_all_three_places(name: str, tmp_path: Path) -> None:
    """One name, one spelling, three places, one value."""
    text, value = SAMPLES[name]
    more = NEEDED.get(name, {})
    by_flag = load({name: text, **more})
    by_env = load({}, {SETTINGS[key].env: raw for key, raw in {name: text, **more}.items()})
    by_file = load(None, None, json.dumps({name: text, **more}), tmp_path)
    assert [getattr(each.settings, name) for each in (by_flag, by_env, by_file)] == [value] * 3


def test_every_setting_has_a_sample() -> None:
    """So the tests around this one look at all of them."""
    assert set(SAMPLES) == set(SETTINGS) - {"config"}


@pytest.mark.parametrize("name", SAMPLES)
def test_parsed_values_have_the_type_of_the_setting(name: str) -> None:
    """A kind gives what the struct declares."""
    value = SETTINGS[name].kind.parse(SAMPLES[name][0])
    hint = typing.get_type_hints(Settings)[name]
    msgspec.convert({"v": value}, dict[str, hint], dec_hook=lambda _, v: v)


@pytest.mark.parametrize("name", ["go.yaml", "go.json", "go.toml"])
def test_config_files_of_the_go_program_work_unchanged(name: str) -> None:
    """Files with its keys load; what no longer applies is told as a warning."""
    loaded = load({"config": str(FIXTURES / name)})
    settings = loaded.settings
    if name == "go.yaml":
        assert (settings.addr, settings.log_level, settings.infer_timeout) == (":8080", "off", 120.0)
        assert settings.cors_allowed_origins == ("http://localhost:5173", "https://chat.example.org")
        assert (settings.llama_ctx, settings.llama_threads, settings.max_wait) == (4096, 3, 20.0)
        assert [warning.split(": ")[1] for warning in loaded.warnings] == ["real_infer", "llama_bin"]
    elif name == "go.json":
        assert (settings.default_model, settings.max_queue_depth, settings.max_wait) == (None, 32, 45.0)
        assert (settings.vram_budget_mb, settings.infer_timeout) == (0, 90.0)
        assert len(loaded.warnings) == 5
    else:
        assert (settings.addr, settings.infer_timeout, settings.max_wait) == ("[::1]:8080", None, 1.5)
        assert settings.cors_allowed_methods == ("GET", "POST", "DELETE", "OPTIONS")
        assert "X-Stainless-*" in settings.cors_allowed_headers
        assert settings.events_file == Path("/var/log/modeld/events.jsonl")
        assert (settings.drain_timeout, settings.shutdown_timeout) == (4.0, 0.5)


BAD = {
    "vram_budget: 5": "unknown key; did you mean vram_budget_mb?",
    "vram-budget-mb: 5": "unknown key; did you mean vram_budget_mb?",
    "zzz: 5": "zzz: unknown key",
    "config: other.yaml": "cannot name another one",
    "addr: ''": "empty",
    "addr: 8080": '":8080"',
    "addr: ':99999'": "0 to 65535",
    "addr: [1]": "no text",
    "vram_budget_mb: -1": "too small",
    "vram_budget_mb: lots": "no size",
    "vram_budget_mb: .nan": "no whole number",
    "{vram_budget_mb: 100, vram_margin_mb: 100}": "leaves nothing of the budget",
    "vram_margin_mb: -5": "too small",
    "max_wait: soon": "no duration",
    "max_wait: -3s": "too short",
    "max_wait: .inf": "hundred years",
    "infer_timeout: -1s": "too short",
    "max_queue_depth: -1": "too small",
    "max_queue_depth: 1.5": "no whole number",
    "max_queue_depth: true": "no whole number",
    "max_body_bytes: 0": "too small",
    "llama_slots: 0": "too small",
    "llama_slots: 1000": "the most is 256",
    "llama_ctx: 3": "the least is 16",
    "llama_ctx: 99999999999": "too large",
    "{llama_ctx: 32, llama_slots: 4}": "too few for 4 slots",
    "llama_kv_type: q8": "did you mean q8_0?",
    "{llama_kv_type: q8_0, llama_flash_attn: false}": "needs flash attention",
    "llama_main_gpu: -1": "too small",
    "llama_tensor_split: 0,0": "no list of shares",
    "llama_tensor_split: [1, -1]": "no list of shares",
    "llama_tensor_split: [1, .nan]": "no list of shares",
    "llama_tensor_split: a,b": "no list of shares",
    "{llama_main_gpu: 0, llama_tensor_split: '1,1'}": "set one of the two",
    "models: {a: {llama_main_gpu: 0, llama_tensor_split: [1, 1]}}": "models.a.llama_main_gpu",
    "events_file: /e": "events_enable: true",
    "cors_enabled: true": "no origin is allowed",
    "cors_allowed_origins: ['*']": "no effect",
    "{cors_enabled: on, cors_allowed_origins: ['https://a.b/']}": "write https://a.b",
    "{cors_enabled: on, cors_allowed_origins: ['a.b']}": "scheme://host:port",
    "{cors_enabled: on, cors_allowed_origins: ['https://*.b.example']}": "is no origin",
    "{cors_enabled: on, cors_allowed_origins: ['https://*']}": "is no origin",
    "allowed_hosts: ['http://gpubox.lan']": "without scheme and port",
    "allowed_hosts: ['gpubox.lan:8080']": "without scheme and port",
    "allowed_hosts: ['a.*.example.com']": "is no host name",
    "allowed_hosts: ['[::1]']": "IP addresses need no entry",
    "tls_cert: /c.pem": "set tls_key too",
    "tls_key: /k.pem": "set tls_cert too",
    "{cors_enabled: on, cors_allowed_origins: ['*'], cors_allowed_methods: ['G T']}": "HTTP header",
    "log_level: loud": "off, error, warn, info, debug",
    "log_format: xml": "text, json",
    "isolation: jail": "thread, process",
    "engine: faek": "did you mean fake?",
    "models: [a]": "no mapping",
    "models: {a: 5}": "models.a: 5 is no mapping",
    "models: {a: {pined: true}}": "models.a.pined: unknown key; did you mean pinned?",
    "models: {a: {ttl: later}}": "models.a.ttl:",
    "models: {a: {llama_ctx: 20}}": "models.a.llama_ctx: 20 cells",
    "models: {a: {llama_kv_type: q4_0, llama_flash_attn: false}}": "models.a.llama_kv_type",
    "models: {a: {aliases: [x]}, b: {aliases: [x]}}": 'models.b.aliases: "x" already names the model a',
    "models: {a: {aliases: [b]}, b: {}}": '"b" already names',
    "models: {a.gguf: {}, b: {aliases: [a]}}": '"a" already names',
    "models: {a.gguf: {}, a: {}}": "the same model",
}


@pytest.mark.parametrize(("file", "says"), BAD.items())
def test_one_clear_line_for_each_mistake(file: str, says: str, tmp_path: Path) -> None:
    """A mistake gives exactly one line, which names the file and the key."""
    (line,) = problems(None, None, file, tmp_path)
    assert line.startswith(f"{tmp_path / 'modeld.yaml'}: ")
    assert says in line
    assert "\n" not in line


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    """File, environment and flags are all read before anything is reported."""
    found = problems(
        {"log_level": "loud"}, {"MODELD_MAX_WAIT": "soon"}, "addr: x\nllama_slots: 0\nfoo: 1\n", tmp_path
    )
    path = tmp_path / "modeld.yaml"
    assert [line.split(": ")[:2] for line in found[:3]] == [
        *([str(path), "addr"], [str(path), "llama_slots"], [str(path), "foo"])
    ]
    assert found[3].startswith("MODELD_MAX_WAIT: ")
    assert found[4].startswith("--log-level: ")


def test_a_combination_names_the_place_of_what_is_to_blame() -> None:
    """A clash between two places is told where one of them was set."""
    assert problems({"vram_margin_mb": "9"}, {"MODELD_VRAM_BUDGET_MB": "8"})[0].startswith(
        "--vram-margin-mb: "
    )
    assert problems({}, {"MODELD_CORS_ENABLED": "1"})[0].startswith("MODELD_CORS_ENABLED: ")


def test_a_mistyped_variable_stops_and_a_foreign_one_warns() -> None:
    """What looks like a setting is an error; what only shares the prefix (Kubernetes does) is a warning."""
    assert problems({}, {"MODELD_VRAM_BUDGET": "5"}) == (
        "MODELD_VRAM_BUDGET: unknown variable; did you mean MODELD_VRAM_BUDGET_MB?",
    )
    environ = {"MODELD_SERVICE_HOST": "x", "MODELD_PORT_8080_TCP": "y", "MODELD_TEST_MODELS": "z"}
    assert load({}, environ).warnings == (
        "MODELD_PORT_8080_TCP: unknown variable, ignored",
        "MODELD_SERVICE_HOST: unknown variable, ignored",
    )


def test_an_empty_variable_is_not_set() -> None:
    """`MODELD_ADDR=` leaves the default."""
    assert load({}, {"MODELD_ADDR": "", "MODELD_CONFIG": ""}).sources == {}


@pytest.mark.parametrize("name", LEGACY)
def test_what_no_longer_applies_warns_everywhere(name: str, tmp_path: Path) -> None:
    """Keys of the Go program are accepted in all three places with what to use instead."""
    for loaded in (
        load({name: "x"}),
        load({}, {"MODELD_" + name.upper(): "x"}),
        load(None, None, f"{name}: x", tmp_path),
    ):
        (warning,) = loaded.warnings
        assert LEGACY[name] in warning


def test_the_config_may_be_named_by_the_environment(tmp_path: Path) -> None:
    """MODELD_CONFIG names the file, --config beats it, and a missing file is a problem."""
    good = tmp_path / "a.json"
    good.write_text('{"llama_slots": 2}', encoding="utf-8")
    assert load({}, {"MODELD_CONFIG": str(good)}).settings.llama_slots == 2
    assert load({"config": str(good)}, {"MODELD_CONFIG": "/none"}).settings.llama_slots == 2
    assert problems({}, {"MODELD_CONFIG": "/none.yaml"}) == (
        "/none.yaml: cannot be read: no such file or directory",
    )


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"STATE_DIRECTORY": "/var/lib/modeld:/var/lib/other", "XDG_STATE_HOME": "/x"}, "/var/lib/modeld"),
        ({"XDG_STATE_HOME": "/x"}, "/x/modeld"),
        ({"XDG_STATE_HOME": "relative"}, "/home/op/.local/state/modeld"),
    ],
)
def test_the_state_folder_follows_systemd_then_xdg(environ: Mapping[str, str], folder: str) -> None:
    """The folder from systemd comes first, then that of XDG; a relative XDG path is ignored."""
    assert load({}, environ).settings.state_dir == Path(folder)


def test_options_of_single_models(tmp_path: Path) -> None:
    """Each model may have its own options; `forever` and -1 mean no ttl, null means the general setting."""
    file = """
models:
  big.gguf: {aliases: [gpt, chat], pinned: yes, ttl: 5m, preload: true, llama_ctx: 16384, llama_ngl: auto}
  small: {ttl: forever, llama_slots: 8, max_queue_depth: 4, llama_flash_attn: off, llama_ubatch: null}
  other: {ttl: -1}
  plain:
"""
    models = load(None, None, file, tmp_path).settings.models
    assert models["big.gguf"] == ModelSettings(
        aliases=("gpt", "chat"), pinned=True, ttl=300.0, preload=True, llama_ctx=16384
    )
    assert models["small"] == ModelSettings(llama_slots=8, max_queue_depth=4, llama_flash_attn=False)
    assert models["other"] == models["plain"] == ModelSettings()


def test_a_size_may_be_left_to_be_chosen(tmp_path: Path) -> None:
    """`auto` is neither the default nor a number of cells, and too few cells for it there are none."""
    loaded = load(
        {"llama_slots": "auto", "llama_ctx": "64"}, None, "models: {a: {llama_ctx: AUTO}}", tmp_path
    )
    assert (loaded.settings.llama_slots, loaded.settings.llama_ctx) == (AUTO, 64)
    assert loaded.settings.models["a"] == ModelSettings(llama_ctx=AUTO)
    assert SETTINGS["llama_slots"].kind.show(AUTO) == "auto"
    models = SETTINGS["models"].kind
    assert models.parse(models.show(loaded.settings.models)) == loaded.settings.models


def test_a_quantised_cache_turns_flash_attention_on(tmp_path: Path) -> None:
    """`auto` alongside a quantised KV cache is on, for the daemon and for single models."""
    loaded = load({"llama_kv_type": "q8_0"})
    assert loaded.settings.llama_flash_attn is True
    assert "llama_kv_type" in loaded.sources["llama_flash_attn"]
    models = load(None, None, "models: {a: {llama_kv_type: q4_0}, b: {}}", tmp_path).settings.models
    assert (models["a"].llama_flash_attn, models["b"].llama_flash_attn) == (True, None)


def test_zero_is_the_default_where_it_was_in_the_go_program(tmp_path: Path) -> None:
    """0 threads, cells, depth and waits mean "not set"; 0 MiB means unlimited, 0 layers none."""
    file = (
        "{llama_threads: 0, llama_ctx: 0, max_queue_depth: 0, max_wait: 0s, drain_timeout: 0, llama_ngl: 0}"
    )
    settings = load(None, None, file, tmp_path).settings
    assert (settings.llama_threads, settings.llama_ctx, settings.max_queue_depth) == (3, 8192, 32)
    assert (settings.max_wait, settings.drain_timeout, settings.llama_ngl) == (30.0, 2.0, 0)


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
    | st.sampled_from(["auto", "off", "5s", "1GiB", "0", "-1", ":80", "q4_0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
NAMES = st.sampled_from([name for name in SETTINGS if name != "config"])
OPTIONS = st.dictionaries(st.sampled_from(list(MODEL_SETTINGS)), ANY, max_size=3)


@given(
    flags=st.dictionaries(NAMES, ANY, max_size=4),
    models=st.dictionaries(st.text(max_size=4), OPTIONS | ANY, max_size=3),
    environ=st.dictionaries(NAMES, ANY.map(str), max_size=3),
)
def test_whatever_is_given_either_loads_or_is_told_in_short_lines(
    flags: Mapping[str, object], models: Mapping[str, object], environ: Mapping[str, str]
) -> None:
    """No value of any type or size brings anything but settings, or problems of one line each."""
    variables = {SETTINGS[name].env: raw for name, raw in environ.items()}
    try:
        load({"models": models, **flags}, variables)
        lines: tuple[str, ...] = ()
    except ConfigError as error:
        lines = error.problems
    assert all(line.isprintable() and len(line) < 400 for line in lines)


def test_a_file_of_events_is_rotated_at_a_size_that_makes_sense() -> None:
    """Tiny files, and rotation without a file, are refused; 0 leaves it to others."""
    file = {"events_enable": "on", "events_file": "/e"}
    assert load({**file, "events_max_bytes": "0"}).settings.events_max_bytes == 0
    for flags, sentence in (
        ({**file, "events_max_bytes": "4KiB"}, "the least is 65536"),
        ({"events_enable": "on", "events_max_bytes": "1MiB"}, "name one with events_file"),
        ({"events_enable": "on", "events_keep": "2"}, "name one with events_file"),
        ({**file, "events_keep": "0"}, "the least is 1"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            load(flags)


def test_isolation_is_by_process_unless_a_model_or_the_daemon_says_thread() -> None:
    """The default is the safe one; one model may differ."""
    assert load({}).settings.isolation is Isolation.PROCESS
    settings = load({"isolation": "thread", "models": {"a": {"isolation": "process"}}}).settings
    assert settings.isolation is Isolation.THREAD
    assert settings.models["a"].isolation is Isolation.PROCESS
