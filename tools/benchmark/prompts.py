# SPDX-License-Identifier: GPL-3.0-only
"""Make prompts of a known length that no cache has seen: random common words from a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence

_WORDS = """
about after again air all along also always an animal answer any around ask away back because been
before began below between book both boy call came car carry change city close come could country cut
day did different do does down each earth eat end enough even every example eye face family far father
feet few find first follow food for form found four from get girl give go good great group grow had hand
hard has head hear help her here high him his home house how idea if important into it just keep kind
know land large last later learn leave left letter life light like line list little live long look made
make man many may me mean men mile might more most mother mountain move much must my name near need
never new next night no not now number of off often oil old on once one only open or other our out over
own page paper part people picture place plant play point put read real right river run said same saw
say school sea second see seem sentence set she should show side small so some something soon sound
spell start state still stop story study such take talk tell than that the their them then there these
they thing think this those thought three through time to together too took tree try turn two under
until up us use very walk want was watch water way we well went were what when where which while white
who why will with without word work world would write year you young your
"""
WORDS = tuple(_WORDS.split())


def make_prompts(
    seed: str, count: int, *, tokens: int, shared: int = 0, words: Sequence[str] = WORDS
) -> list[str]:
    """Return prompts of `tokens` words each; the first `shared` words are the same in all, and for all seeds.

    Each word is one token where `words` was chosen so. Every prompt has its own first word after the
    shared part as far as there are enough of them, so that no cache can serve more than that part.
    """
    if not 0 <= shared < tokens:
        raise ValueError(f"the shared prefix of {shared} tokens leaves nothing of a prompt of {tokens}")
    prefix = _source("shared").choices(words, k=shared)
    source = _source(seed)
    firsts = source.sample(words, min(count, len(words)))
    prompts: list[str] = []
    for number in range(count):
        rest = [firsts[number % len(firsts)], *source.choices(words, k=tokens - shared - 1)]
        prompts.append("".join(f" {word}" for word in (*prefix, *rest)))
    return prompts


def _source(seed: str) -> random.Random:
    return random.Random(seed)  # noqa: S311  # the same prompts for the same seed, no secrets
