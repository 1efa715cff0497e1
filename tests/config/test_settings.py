# SPDX-License-Identifier: GPL-3.0-only
"""All settings: what each declares, and what follows from the declarations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import pytest
from click.testing import CliRunner

from modeld.cli.main import modeld
from modeld.config import setting as setting_module
from modeld.config.kinds import Kind, whole
from modeld.config.model_settings import ModelSettings
from modeld.config.setting import Setting, settings_of
from modeld.config.settings import LEGACY, LOAD_SETTINGS, MODEL_SETTINGS, SETTINGS, Settings, for_model
from modeld.domain.model import Isolation

DOCUMENT = Path(__file__).parents[2] / "docs" / "configuration.md"


def rows_of(document: Path) -> dict[str, list[str]]:
    """The rows of the tables by what they name first; settings, options and old keys may share a name."""
    rows: dict[str, list[str]] = {}
    for line in document.read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            rows.setdefault(line.split("`")[1], []).append(line)
    return rows


ROWS = rows_of(DOCUMENT)


@pytest.fixture(scope="module")
def help_text() -> str:
    """What `modeld serve --help` prints, without blanks, since lines may break at hyphens as well."""
    return "".join(CliRunner().invoke(modeld, ["serve", "--help"]).stdout.split())


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_has_all_that_is_told_of_it(name: str, help_text: str) -> None:
    """A field, a sentence, a section, a flag, a variable, a readable default, and a row in the document."""
    setting = SETTINGS[name]
    assert name in Settings.__struct_fields__
    assert setting.help.endswith(".")
    assert "  " not in setting.help
    assert setting.section
    assert setting.flag == "--" + name.replace("_", "-")
    assert setting.env == "MODELD_" + name.upper()
    assert setting.default == getattr(Settings(), name)
    if setting.default_text is None:
        read = setting.kind.parse(setting.shown_default)
        assert read == (Path("~/models/llm").expanduser() if name == "models_dir" else setting.default)
    told = f"[default:{setting.shown_default}]" if setting.shown_default else ""
    assert "".join(f"{setting.help.replace('`', '')}{told}".split()) in help_text
    row = ROWS[name][0]
    metavar = setting.kind.metavar.replace("|", " \\| ")
    assert f"| {metavar} | " in row
    assert setting.shown_default in row
    assert f"| {setting.help}" in row


@pytest.mark.parametrize("name", MODEL_SETTINGS)
def test_an_option_of_a_model_has_all_that_is_told_of_it(name: str) -> None:
    """A field, a sentence, a default that means "not set", and a row; what is shared is the daemon's own."""
    option = MODEL_SETTINGS[name]
    assert option.help.endswith(".")
    assert option.default == getattr(ModelSettings(), name)
    assert option.default in (None, False, ())
    assert f"| {option.help} |" in ROWS[name][-1]
    if name in LOAD_SETTINGS:
        assert (option.kind, option.help) == (SETTINGS[name].kind, SETTINGS[name].help)


def test_nothing_is_declared_twice_or_left_out() -> None:
    """Structs and tables name the same things; what no longer applies is no setting."""
    assert tuple(SETTINGS) == Settings.__struct_fields__
    assert tuple(MODEL_SETTINGS) == ModelSettings.__struct_fields__
    assert not set(LEGACY) & set(SETTINGS)
    assert set(LEGACY) <= set(ROWS)
    assert len({flag for each in SETTINGS.values() for flag in (each.flag, *each.flags)}) == len(SETTINGS) + 3
    sections = [each.section for each in SETTINGS.values()]
    assert sections == sorted(sections, key=sections.index)
    assert {name for name in SETTINGS if name.startswith("llama_")} | {"isolation"} == set(LOAD_SETTINGS)
    assert set(LOAD_SETTINGS) <= set(MODEL_SETTINGS)


class Daemon(msgspec.Struct):
    """Some settings."""

    speed: Annotated[int, Setting(whole(1, 9), section="Motion")] = 3
    """How fast it goes,
    in steps."""
    loud: bool = False
    """Whether it hums."""


class Part(msgspec.Struct):
    """Some settings of a part."""

    colour: str = ""
    """What it looks like."""
    speed: int | None = None


def test_a_field_is_a_setting_by_its_annotation_its_text_and_its_default() -> None:
    """Text over two lines is one; a section holds until the next; a type that says enough needs no kind."""
    settings = settings_of(Daemon)
    speed, loud = settings.values()
    assert (speed.name, speed.help, speed.section) == ("speed", "How fast it goes, in steps.", "Motion")
    assert (speed.flag, speed.env, speed.shown_default) == ("--speed", "MODELD_SPEED", "3")
    assert (loud.help, loud.section, loud.kind.metavar) == ("Whether it hums.", "Motion", "BOOL")
    colour, own = settings_of(Part, settings).values()
    assert colour.help == "What it looks like."
    assert (own.kind, own.help, own.default) == (speed.kind, speed.help, None)


def test_a_field_whose_type_does_not_say_enough_is_refused_at_the_import() -> None:
    """A number has bounds, so its kind must be named."""

    class Bare(msgspec.Struct):
        count: int = 1

    with pytest.raises(TypeError, match=r"Bare\.count names no kind, and its type has none"):
        settings_of(Bare)


def test_without_its_source_a_setting_only_lacks_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where only compiled files are installed."""

    def missing(_: object) -> str:
        raise OSError("could not get source code")

    monkeypatch.setattr(setting_module.inspect, "getsource", missing)
    assert [(each.name, each.help) for each in settings_of(Daemon).values()] == [("speed", ""), ("loud", "")]


def test_kinds_show_what_they_read() -> None:
    """Whatever a kind makes of the default, it shows and reads again; as JSON, too."""
    for each in (*SETTINGS.values(), *MODEL_SETTINGS.values()):
        kind: Kind = each.kind
        if each.default not in (None, ""):
            value = kind.parse(kind.show(each.default)) if each.name != "models" else each.default
            assert kind.parse(kind.as_json(value)) == value


def test_a_model_has_its_own_options_and_else_those_of_the_daemon() -> None:
    """What is None follows; who names one of the two settings of GPUs names both."""
    daemon = Settings(llama_ctx=512, llama_slots=2, llama_main_gpu=1, max_queue_depth=7, fake="tokens=3")
    own = for_model(daemon, ModelSettings(llama_slots=4, isolation=Isolation.THREAD, llama_mmap=False))
    assert (own.llama_ctx, own.llama_slots, own.llama_main_gpu) == (512, 4, 1)
    assert (own.isolation, own.llama_mmap, own.max_queue_depth) == (Isolation.THREAD, False, 7)
    split = for_model(daemon, ModelSettings(llama_tensor_split=(3.0, 1.0), max_queue_depth=1, fake=""))
    assert (split.llama_main_gpu, split.llama_tensor_split) == (None, (3.0, 1.0))
    assert (split.max_queue_depth, split.fake) == (1, "")
    assert for_model(daemon, ModelSettings()) == daemon
