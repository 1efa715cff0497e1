# SPDX-License-Identifier: GPL-3.0-only
"""Merge settings: flag, then environment, then config file, then default.

Nothing stops at the first problem: all of them are collected, one line each, and raised as one
`ConfigError`. What merely deserves a word is a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from modeld.config.files import UnreadableConfig, read_config
from modeld.config.key_file import CREDENTIAL
from modeld.config.kinds import QUANTISED_KV
from modeld.config.machine import usable_cores
from modeld.config.model_settings import ModelSettings
from modeld.config.rules import cautions, findings
from modeld.config.setting import ENV_PREFIX, Setting, flag_of
from modeld.config.settings import LEGACY, SETTINGS, Settings, for_model
from modeld.config.values import BadValue, did_you_mean, nearest

_NOT_SETTINGS = ("MODELD_TEST", "MODELD_BENCH", "MODELD_CACHE", "MODELD_API_KEY", "MODELD_CA_FILE")
"""Variables that the tests and tools of this project read, and the key of its client commands."""


class ConfigError(Exception):
    """The settings cannot be used. `problems` has one line for each thing to mend."""

    def __init__(self, problems: tuple[str, ...], warnings: tuple[str, ...] = ()) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
        self.warnings = warnings


class LoadedSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings and where they came from.

    `sources` has every setting that is not at its default, by name: "--addr", "MODELD_ADDR",
    "/etc/modeld.yaml", or a reason.
    """

    settings: Settings
    warnings: tuple[str, ...] = ()
    sources: Mapping[str, str] = {}


@dataclass
class _Gathered:
    values: dict[str, object] = field(default_factory=dict[str, object])
    sources: dict[str, str] = field(default_factory=dict[str, str])
    labels: dict[str, str] = field(default_factory=dict[str, str])
    problems: list[str] = field(default_factory=list[str])
    warnings: list[str] = field(default_factory=list[str])

    def take(self, entry: Setting, raw: object, source: str, label: str) -> None:
        """Parse one raw value; `label` is how its place is told in a problem."""
        try:
            if entry.is_unset(raw):
                return
            self.values[entry.name] = entry.kind.parse(raw)
        except BadValue as error:
            for below, sentence in error.problems:
                self.problems.append(f"{label}{'.' + below if below else ''}: {sentence}")
            return
        self.sources[entry.name] = source
        self.labels[entry.name] = label

    def told(self, name: str, sentence: str) -> str:
        """Return what is said of a setting, or of one below it (`models.x.ttl`), with its place."""
        top, _, below = name.partition(".")
        return f"{self.labels.get(top, top)}{'.' + below if below else ''}: {sentence}"


def load_settings(
    *,
    flags: Mapping[str, object],
    environ: Mapping[str, str],
    cores: Callable[[], int] = usable_cores,
) -> LoadedSettings:
    """Read all places and return the settings.

    Args:
      flags: by name (`vram_budget_mb`), as typed; None is "not given". Legacy names are accepted.
      environ: the environment, whole.
      cores: tells how many cores this process may use.

    Raises:
      ConfigError: with every problem there is.
    """
    found = _Gathered()
    path = _config_path(flags, environ, found)
    if path is not None:
        _take_file(path, found)
    _take_environment(environ, found)
    _take_flags(flags, found)
    _fill_in(found, environ, cores)
    settings = msgspec.structs.replace(Settings(), **found.values)
    if not found.problems:
        found.problems += (found.told(*finding) for finding in findings(settings, found.sources))
    if not found.problems:
        found.warnings += (found.told(*caution) for caution in cautions(settings, found.sources))
    warnings = tuple(map(_one_line, found.warnings))
    if found.problems:
        raise ConfigError(tuple(map(_one_line, found.problems)), warnings)
    return LoadedSettings(settings=settings, warnings=warnings, sources=found.sources)


def _one_line(text: str) -> str:
    """Return `text` with line ends and other control characters written out."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _config_path(flags: Mapping[str, object], environ: Mapping[str, str], found: _Gathered) -> Path | None:
    entry = SETTINGS["config"]
    if (raw := flags.get("config")) is not None:
        found.take(entry, raw, entry.flag, entry.flag)
    elif environ.get(entry.env):
        found.take(entry, environ[entry.env], entry.env, entry.env)
    path = found.values.get("config")
    return path if isinstance(path, Path) else None


def _take_file(path: Path, found: _Gathered) -> None:
    try:
        content = read_config(path)
    except UnreadableConfig as error:
        found.problems.append(f"{path}: {error}")
        return
    for key, raw in content.items():
        label = f"{path}: {key[:60]}"
        entry = SETTINGS.get(key)
        if key in LEGACY:
            found.warnings.append(f"{label}: no longer applies: {LEGACY[key]}")
        elif key == "config":
            found.problems.append(f"{label}: a config file cannot name another one")
        elif entry is None:
            found.problems.append(f"{label}: unknown key{did_you_mean(key, SETTINGS)}")
        else:
            found.take(entry, raw, str(path), label)


def _take_environment(environ: Mapping[str, str], found: _Gathered) -> None:
    by_variable = {entry.env: entry for entry in SETTINGS.values()}
    for variable, raw in sorted(environ.items()):
        if (
            not variable.startswith(ENV_PREFIX)
            or variable.startswith(_NOT_SETTINGS)
            or variable == "MODELD_CONFIG"
        ):
            continue
        name = variable.removeprefix(ENV_PREFIX).lower()
        entry = by_variable.get(variable)
        if name in LEGACY:
            found.warnings.append(f"{variable}: no longer applies: {LEGACY[name]}")
        elif entry is not None:
            if raw.strip():
                found.take(entry, raw, variable, variable)
        elif other := nearest(name, SETTINGS, cutoff=0.75):
            found.problems.append(f"{variable}: unknown variable; did you mean {SETTINGS[other].env}?")
        else:
            found.warnings.append(f"{variable}: unknown variable, ignored")


def _take_flags(flags: Mapping[str, object], found: _Gathered) -> None:
    for name, raw in flags.items():
        if raw is None or name == "config":
            continue
        flag = flag_of(name)
        if name in LEGACY:
            found.warnings.append(f"{flag}: no longer applies: {LEGACY[name]}")
        elif name in SETTINGS:
            found.take(SETTINGS[name], raw, flag, flag)
        else:
            found.problems.append(f"{flag}: unknown flag{did_you_mean(name, SETTINGS)}")


def _fill_in(found: _Gathered, environ: Mapping[str, str], cores: Callable[[], int]) -> None:
    """Add the defaults that are no constants, and drop what only says "the default"."""
    values, defaults = found.values, Settings()
    if values.get("models_dir", "") is None:
        del values["models_dir"]
    models_dir = values.get("models_dir", SETTINGS["models_dir"].kind.parse(str(defaults.models_dir)))
    values["models_dir"] = models_dir
    values.setdefault("llama_threads", cores())
    if values.get("state_dir") is None:
        values["state_dir"] = _state_dir(environ)
    if values.get("keys_file") is None and (credential := _credential(environ)) is not None:
        values["keys_file"] = credential
        found.sources["keys_file"] = "$CREDENTIALS_DIRECTORY"
    for name in ("cors_allowed_methods", "cors_allowed_headers"):
        if values.get(name) == ():
            del values[name]
    _turn_flash_on(found)


def _turn_flash_on(found: _Gathered) -> None:
    """A quantised KV cache works with flash attention only, so `auto` means on alongside one."""
    values = found.values
    if values.get("llama_kv_type") in QUANTISED_KV and values.get("llama_flash_attn") is None:
        values["llama_flash_attn"] = True
        found.sources["llama_flash_attn"] = f"needed for llama_kv_type {values['llama_kv_type']}"
    draft = msgspec.structs.replace(Settings(), **values)
    models: dict[str, ModelSettings] = {}
    for name, model in draft.models.items():
        own = for_model(draft, model)
        needed = own.llama_kv_type in QUANTISED_KV and own.llama_flash_attn is None
        models[name] = msgspec.structs.replace(model, llama_flash_attn=True) if needed else model
    values["models"] = models


def _credential(environ: Mapping[str, str]) -> Path | None:
    """Return the file of keys that systemd passed, if it did (systemd.exec(5), CREDENTIALS)."""
    folder = environ.get("CREDENTIALS_DIRECTORY", "")
    path = Path(folder) / CREDENTIAL
    return path if folder.startswith("/") and path.is_file() else None


def _state_dir(environ: Mapping[str, str]) -> Path:
    """Return systemd's StateDirectory= (its first), else modeld's folder in the XDG state folder."""
    if given := environ.get("STATE_DIRECTORY", "").split(":")[0]:
        return Path(given)
    if (base := environ.get("XDG_STATE_HOME", "")).startswith("/"):
        return Path(base) / "modeld"
    home = environ.get("HOME", "")
    return Path(home if home.startswith("/") else Path.home()) / ".local" / "state" / "modeld"
