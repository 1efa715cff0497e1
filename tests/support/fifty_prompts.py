# SPDX-License-Identifier: GPL-3.0-only
"""Fifty prompts of many kinds: short and long, other scripts, code, repetitions, odd blanks, chats.

None has more than 300 tokens. A chat is a tuple of (role, content).
"""

from __future__ import annotations

Chat = tuple[tuple[str, str], ...]

_STORY = (
    "The keeper of the lighthouse wrote down every ship that passed. On calm days there were many, and he "
    "knew most of them by their sails. On stormy days there were few, and he lit the lamp early. "
)
_CODE = '''
class Queue:
    """A first-in first-out queue."""

    def __init__(self):
        self.items = []

    def push(self, item):
        self.items.append(item)

    def pop(self):
'''

RAW: tuple[str, ...] = (
    # short
    "a",
    "Hi",
    "The",
    "1",
    "?",
    "Once upon a time",
    "The three largest planets are",
    "2 + 2 =",
    "Paris is the capital of",
    "My favourite colour is",
    # sentences
    "In the beginning of the twentieth century, physics changed because",
    "Water boils at a lower temperature on a mountain, since",
    "The recipe needs two eggs, a cup of flour, and",
    "She opened the letter slowly. It said:",
    'He asked: "Where were you last night?" She answered: "',
    "To be, or not to be, that is",
    "Dear Sir or Madam,\n\nI am writing to",
    "Q: What is the boiling point of water?\nA:",
    "Translate to French: 'Good morning' ->",
    "Monday, Tuesday, Wednesday,",
    # scripts and signs
    "Zwölf Äpfel €€ 😀",
    "Привет, как дела?",
    "こんにちは、世界",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "👩‍👩‍👧‍👦 is a family, 🏳️‍🌈 is a flag, and",
    "e\u0301 and \u00e9 look alike; \u200bthis has a zero-width space.",
    "∀x ∃y: x² ≥ y, because",
    "\ttabs\tand\n\n\nnew lines   and   blanks  ",
    "%$#@!^&*()_+-={}[]|\\:;'<>,./~`",
    # code
    "def fibonacci(n):",
    "#include <stdio.h>\n\nint main(void) {\n",
    "SELECT name, age FROM people WHERE",
    '{"name": "Ada", "born": 1815, "known_for": [',
    "<html>\n<head>\n<title>",
    "for i in range(10):\n    print(",
    _CODE,
    "import numpy as np\n\nx = np.arange(10)\nprint(x.",
    # repetitions
    "the the the the the the the the the the the the",
    "na " * 30,
    "abcabcabc" * 8,
    "0 1 0 1 0 1 0 1 0 1 0 1 0",
    # long
    _STORY * 2 + "One night",
    _STORY * 4 + "His daughter",
    "\n".join(f"{number}. item number {number}" for number in range(1, 25)) + "\n25.",
)
CHATS: tuple[Chat, ...] = (
    (("user", "What is the capital of France?"),),
    (("system", "You answer in one word."), ("user", "Which animal barks?")),
    (
        ("user", "My name is Ada."),
        ("assistant", "Hello Ada, how can I help?"),
        ("user", "What is my name?"),
    ),
    (("system", "You are a pirate."), ("user", "Begrüße mich auf Deutsch, bitte! 🏴‍☠️")),
    (("user", "Summarise this:\n" + _STORY), ("assistant", "A keeper logs ships."), ("user", "Shorter!")),
)
assert len(RAW) + len(CHATS) == 50
