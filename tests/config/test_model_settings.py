# SPDX-License-Identifier: GPL-3.0-only
"""How LoRA adapters are written in the options of a model, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from modeld.config.load import ConfigError, load_settings
from modeld.config.model_settings import LORA, MOST_ADAPTERS, LoraSettings, ModelSettings
from modeld.config.settings import SETTINGS, Settings


def load(text: str, folder: Path) -> Settings:
    """The settings of a config file."""
    file = folder / "modeld.yaml"
    file.write_text(text)
    return load_settings(flags={"config": str(file)}, environ={}).settings


def test_adapters_have_a_path_and_a_scale(tmp_path: Path) -> None:
    """The scale is 1 where it is not given, and what is shown reads as the same again."""
    text = "models: {a: {lora: [{path: x.gguf, scale: 0.8}, {path: /l/y.gguf}, {path: z.gguf, scale: '-1'}]}}"
    models = load(text, tmp_path).models
    expected = (
        LoraSettings(path=Path("x.gguf"), scale=0.8),
        LoraSettings(path=Path("/l/y.gguf")),
        LoraSettings(path=Path("z.gguf"), scale=-1.0),
    )
    assert models["a"] == ModelSettings(lora=expected)
    assert LORA.parse(LORA.show(expected)) == expected
    kind = SETTINGS["models"].kind
    assert kind.parse(kind.show(models)) == models
    assert load("models: {a: {lora: []}}", tmp_path).models["a"] == ModelSettings()


@pytest.mark.parametrize(
    ("lora", "says"),
    [
        ("x.gguf", '"x.gguf" is no list; write [{path: adapter.gguf, scale: 0.8}]'),
        ("7", "7 is no list"),
        ("[x.gguf]", 'adapter 1: "x.gguf" is no mapping; write {path: adapter.gguf}'),
        ("[{path: x.gguf}, {scale: 1}]", "adapter 2: it has no path; name its file"),
        ("[{path: ''}]", "adapter 1: it has no path"),
        ("[{path: x, weight: 1}]", 'adapter 1: unknown key "weight"'),
        ("[{path: x, scale: .nan}]", "adapter 1: the scale nan is no number between -1000 and 1000"),
        ("[{path: x, scale: .inf}]", "the scale inf is no number"),
        ("[{path: x, scale: 1000.5}]", "the scale 1000.5 is no number"),
        ("[{path: x, scale: true}]", "the scale true is no number"),
        ("[{path: x, scale: much}]", 'the scale "much" is no number'),
        (f"[{', '.join(['{path: x}'] * (MOST_ADAPTERS + 1))}]", "9 adapters are too many; the most is 8"),
    ],
)
def test_what_is_no_adapter_is_told(lora: str, says: str, tmp_path: Path) -> None:
    """With the model, the number of the adapter, and what to write."""
    with pytest.raises(ConfigError) as caught:
        load(f"models: {{a: {{lora: {lora}}}}}", tmp_path)
    (problem,) = caught.value.problems
    assert "models.a.lora: " in problem
    assert says in problem
