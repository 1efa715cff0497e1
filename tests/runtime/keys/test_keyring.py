# SPDX-License-Identifier: GPL-3.0-only
"""The keys in force: checked once, remembered, and forgotten when they are revoked."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from support.keys import cheap_key, ring
from trio.testing import wait_all_tasks_blocked

from modeld.config.key_file import changing
from modeld.errors import TooManyAttempts
from modeld.runtime.keys import keyring as module
from modeld.runtime.keys.keyring import MOST_WAITING, REFUSALS, Keyring


async def test_only_the_whole_key_is_its_holders() -> None:
    """A wrong secret, an unknown id and no key at all are nobody's."""
    keyring, texts = ring(alice={})
    holder = await keyring.holder(texts["alice"])
    assert holder is not None
    assert holder.name == "alice"
    wrong = texts["alice"][:-1] + ("0" if texts["alice"][-1] != "0" else "1")
    for text in (wrong, texts["alice"] + "0", texts["alice"].upper(), "modeld_abc_def", "", "\N{SNOWMAN}"):
        assert await keyring.holder(text) is None
    _, stranger, _ = cheap_key("stranger")
    assert await keyring.holder(stranger) is None


async def test_a_secret_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second look at a key, right or wrong, costs no hash."""
    keyring, texts = ring(alice={})
    wrong = texts["alice"][:-1] + ("0" if texts["alice"][-1] != "0" else "1")
    assert await keyring.holder(texts["alice"]) is not None
    assert await keyring.holder(wrong) is None

    def never(*_: object) -> bool:
        raise AssertionError

    monkeypatch.setattr(module, "matches", never)
    assert await keyring.holder(texts["alice"]) is not None
    assert await keyring.holder(wrong) is None


async def test_refusals_are_remembered_up_to_a_bound() -> None:
    """However many wrong keys are tried, memory stays bounded, and good keys are kept."""
    keyring, texts = ring(alice={})
    head = texts["alice"][:-64]
    assert await keyring.holder(texts["alice"]) is not None
    keyring._refused = {number.to_bytes(4): None for number in range(REFUSALS)}
    assert await keyring.holder(head + "0" * 64) is None
    assert len(keyring._refused) == REFUSALS
    assert len(keyring._known) == 1


async def test_a_flood_of_new_keys_is_refused_and_known_ones_are_not() -> None:
    """While one is being hashed, so many may wait; who was seen before does not wait at all."""
    keyring, texts = ring(alice={}, bob={})
    assert await keyring.holder(texts["alice"]) is not None
    head = texts["bob"][:-64]
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as held:
            async with keyring._limiter:
                for number in range(MOST_WAITING):
                    nursery.start_soon(keyring.holder, head + f"{number:064x}")
                await wait_all_tasks_blocked()
                with pytest.raises(TooManyAttempts, match="try again"):
                    await keyring.holder(texts["bob"])
                assert await keyring.holder(texts["alice"]) is not None
        assert not held.cancelled_caught
    assert await keyring.holder(texts["bob"]) is not None


async def test_the_file_is_read_again_and_a_bad_one_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A revoked key is refused, a new one is taken; a broken file leaves all as it was, and says so."""
    path = tmp_path / "keys.yaml"
    made = {name: cheap_key(name) for name in ("alice", "bob")}
    with changing(path) as entries:
        entries[made["alice"][0]] = made["alice"][2]
    keyring = Keyring.open(path)
    assert await keyring.holder(made["alice"][1]) is not None
    assert await keyring.holder(made["bob"][1]) is None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keyring.run)
        with changing(path) as entries:
            entries.clear()
            entries[made["bob"][0]] = made["bob"][2]
        before = keyring._entries
        keyring.reload()
        with trio.fail_after(30):
            while keyring._entries is before:
                await trio.sleep(0.01)
        assert await keyring.holder(made["alice"][1]) is None
        assert await keyring.holder(made["bob"][1]) is not None
        path.write_text("keys: [")
        keyring.reload()
        with trio.fail_after(30):
            while "the keys stay as they were" not in caplog.text:
                await trio.sleep(0.01)
        assert await keyring.holder(made["bob"][1]) is not None
        nursery.cancel_scope.cancel()


async def test_a_key_that_is_revoked_while_it_is_checked_is_refused() -> None:
    """What was read before the file changed opens nothing after it."""
    keyring, texts = ring(alice={})
    answers: list[object] = []

    async def ask() -> None:
        answers.append(await keyring.holder(texts["alice"]))

    async with trio.open_nursery() as nursery, keyring._limiter:
        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        keyring._take({})
    assert answers == [None]
