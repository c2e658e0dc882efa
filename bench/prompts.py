"""Prompts of an exact number of tokens, in the words that are the tokens of bench.shapes.

Only the standard library: peers import this in environments of their own.
"""

import random
import string

LETTERS = 4
COMMON_WORDS = 1500
"""Words that the vocabulary of every shape has."""


def word(index: int) -> str:
    """Return the word of a token id: aaaa, aaab, ..."""
    letters = []
    for _ in range(LETTERS):
        index, letter = divmod(index, len(string.ascii_lowercase))
        letters.append(string.ascii_lowercase[letter])
    return "".join(reversed(letters))


def token_id(text: str) -> int:
    """Return the token id of a word."""
    index = 0
    for letter in text:
        index = index * len(string.ascii_lowercase) + string.ascii_lowercase.index(letter)
    return index


def make_prompts(count: int, tokens: int, seed: int) -> list[str]:
    """Return distinct prompts, each beginning with a space. Another seed shares no beginning with
    them, so no cache of past prompts helps anybody."""
    chance = random.Random(seed)
    return [
        "".join(f" {word(chance.randrange(COMMON_WORDS))}" for _ in range(tokens))
        for _ in range(count)
    ]
