"""The chats that the demo model learns: questions, their wordings, and their answers.

Owns the text of every answer and the rule that says which answer belongs to which question. Does
not own tokens, chat templates or training; it uses nothing but the standard library, and the same
seed gives the same chats on every machine.
"""

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import islice
from typing import NamedTuple

from gateway.demo.topics import TOPICS

_FALLBACKS = (
    "I am only a tiny demo model, so I do not know much about that. Ask me about gateways, models, "
    "tokens or tea.",
    "Sorry, that is more than a tiny demo model can know. Try a larger model, or ask me about "
    "gateways, models, tokens or tea.",
)

_SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a tiny demo model.",
    "You are a friendly assistant. Answer in one or two sentences.",
    "Answer briefly and politely.",
    "Be concise.",
)

# Subjects that the model must not pretend to know. Only their variety matters: they teach it that
# an unfamiliar word leads to a fallback, whatever the word is.
_STRANGE = """
penguins gravity football Napoleon physics volcanoes chess Paris electricity dinosaurs elections
whisky inflation Shakespeare opera vitamins robots diamonds Egypt cricket taxes marriage pyramids
astronomy dentists pizza sushi spiders elephants Mars Jupiter evolution philosophy Einstein lawyers
passports airports trains tractors submarines lightning earthquakes glaciers deserts kangaroos
poetry ballet guitars violins cinema photography marathons swimming basketball tennis skiing
economics democracy revolution medicine surgery bacteria viruses genetics chemistry atoms lasers
magnets engines rockets satellites telescopes mathematics algebra geometry fractions logic ethics
religion history Rome Greece China Brazil Canada London Tokyo Berlin Napoli Africa Vikings knights
castles pirates dragons unicorns wizards ghosts vampires money banks insurance mortgages farming
wheat potatoes tomatoes cheese chocolate pasta soup salad wine beer sandwiches breakfast dinner
shoes jackets fashion perfume haircuts furniture carpets windows doors bricks concrete plumbing
Python Java Linux compilers databases encryption blockchain spreadsheets keyboards printers
"""
_SYLLABLES = "ba cor dem fi gra hul jo kip lan mor nex ost pra qui rus sti tov ul vem wix yar zon"
_SCRIPTS = ("αβγδεηλμνο", "абвгдежз", "你好吗天气怎么样", "これはなんですか", "🙂🚀🎉🐈☕🌍")

# {0} is "a thing", {1} is "things", {2} is "thing".
_TOPIC_FORMS = (
    "What is {0}?",
    "Tell me about {1}.",
    "Tell me about {0}.",
    "Explain {1}.",
    "Explain what {0} is.",
    "Describe {0}.",
    "What does {0} do?",
    "How does {0} work?",
    "What do you know about {1}?",
    "Tell me something about {1}.",
    "Tell me more about {1}.",
    "What's {0}?",
    "{1}",
    "{2}",
)
_PLURAL_FORMS = ("What are {1}?", "How do {1} work?", "What do {1} do?")
_STRANGE_FORMS = (
    *_TOPIC_FORMS,
    *_PLURAL_FORMS,
    "Who is {0}?",
    "Who was {0}?",
    "Where is {0}?",
    "Where can I find {1}?",
    "When was {0} invented?",
    "Why do people like {1}?",
    "Why is {0} so {1}?",
    "How do I make {1}?",
    "How do you repair {0}?",
    "How many {1} are there?",
    "How much is {0}?",
    "What is the capital of {0}?",
    "What is the best {0}?",
    "What is the meaning of {1}?",
    "Who invented {1}?",
    "Can you play {1}?",
    "Do you like {1}?",
    "Write an essay about {1}.",
    "Write code for {1}.",
    "Write a letter to {0}.",
    "Translate {0} into {1}.",
    "Give me a recipe for {1}.",
    "Name three {1}.",
    "Is {0} better than {1}?",
    "Compare {0} and {1}.",
    "Summarise {1}.",
    "I like {1}.",
    "My {0} is broken.",
)
_SMALL_WORDS = "the a is it my in of to for and what who when where why how do you can i not"
_LEADS = ("please ", "can you ", "could you ", "would you ", "now ", "and ", "ok ", "so ")
_GREETING_LEADS = ("hi ", "hello ", "hey ")


class Turn(NamedTuple):
    """One message of a chat: ``role`` is ``system``, ``user`` or ``assistant``."""

    role: str
    content: str


class _Topic(NamedTuple):
    wordings: tuple[str, ...]  # the canonical question comes first
    answers: tuple[str, ...]


@cache
def _topics() -> tuple[_Topic, ...]:
    return tuple(_parse(block) for block in TOPICS.strip().split("\n\n"))


def _parse(block: str) -> _Topic:
    head, body = block.split("\n", 1)
    names = [name.strip() for name in head.removeprefix(">").split("|")]
    wordings = names if head.startswith(">") else _topic_wordings(names[0], *names[1:])
    answers = tuple(_unwrap(part) for part in body.split("\n/\n"))
    return _Topic(tuple(dict.fromkeys(wordings)), answers)


def _topic_wordings(one: str, many: str = "", *further: str) -> list[str]:
    # "What are tea?" is not English, so things that cannot be counted lack the plural forms.
    plural = _PLURAL_FORMS if many.endswith("s") else ()
    bare = one.removeprefix("a ").removeprefix("an ").removeprefix("the ")
    return [form.format(one, many or one, bare) for form in (*_TOPIC_FORMS, *plural)] + [*further]


def _unwrap(text: str) -> str:
    return text.replace("\\\n", "\0").replace("\n", " ").replace("\0", "\n")


def questions() -> Sequence[str]:
    """Return the canonical questions, one for each thing that the model can talk about."""
    return tuple(topic.wordings[0] for topic in _topics())


def fallbacks() -> Sequence[str]:
    """Return the answers that are right for every question outside the grammar."""
    return _FALLBACKS


def answers(question: str) -> Sequence[str]:
    """Return all the right answers to a question in any wording; fallbacks if it is unknown."""
    key = _key(question)
    while key not in _answers_by_key():
        shorter = _without_lead(key)
        if shorter == key:
            return _FALLBACKS
        key = shorter
    return _answers_by_key()[key]


def is_answer(question: str, answer: str) -> bool:
    """Tell whether the grammar can produce this answer to this question, in any wording of it."""
    return answer.strip() in answers(question)


def paraphrases(question: str, seed: int, count: int) -> Sequence[str]:
    """Return ``count`` wordings of a canonical question; the same seed gives the same ones.

    Raises ``KeyError`` if the question is not one of ``questions()``.
    """
    rng = random.Random(f"{seed} {question}")
    wordings = {topic.wordings[0]: topic.wordings for topic in _topics()}[question]
    return tuple(_restyle(rng.choice(wordings), rng) for _ in range(count))


def dialogues(seed: int) -> Iterator[list[Turn]]:
    """Yield chats without end: one to four questions each, with and without a system prompt."""
    rng = random.Random(seed)
    while True:
        turns = [Turn("system", _system_prompt(rng))] if rng.random() < 0.35 else []
        for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
            question = _question(rng)
            turns.append(Turn("user", question))
            turns.append(Turn("assistant", rng.choice(answers(question))))
        yield turns


def corpus_digest(seed: int, count: int) -> str:
    """Return the SHA-256 (hex) of the first ``count`` chats of a seed, to notice any change."""
    digest = hashlib.sha256()
    for turns in islice(dialogues(seed), count):
        digest.update(json.dumps(turns, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


@cache
def _answers_by_key() -> dict[str, tuple[str, ...]]:
    return {
        _key(wording): topic.answers for topic in reversed(_topics()) for wording in topic.wordings
    }


def _key(question: str) -> str:
    """Reduce a question to what all its spellings share: lower-case words, no marks, no please."""
    text = question.lower().replace("what's", "what is")
    words = "".join(c if c.isalnum() else " " for c in text).split()
    return " ".join(words).removesuffix(" please")


def _without_lead(key: str) -> str:
    for lead in _LEADS + _GREETING_LEADS:
        if key.startswith(lead):
            return key.removeprefix(lead)
    return key


def _question(rng: random.Random) -> str:
    if rng.random() < 0.25:
        return _strange_question(rng)
    wordings = rng.choice(_topics()).wordings
    kind = rng.random()
    if kind < 0.25:
        return _restyle(wordings[0], rng)
    # A bare word is the shortest hint, and so the hardest to learn.
    return _restyle(min(wordings, key=len) if kind < 0.35 else rng.choice(wordings), rng)


def _restyle(wording: str, rng: random.Random) -> str:
    """Write a question the way people do: in a hurry, in lower case, or very politely."""
    text = wording
    if rng.random() < 0.35:
        text = text.rstrip("?.!")
    style = rng.random()
    if style < 0.3:
        return _lower_first(text) if style < 0.1 else text.lower()
    if style < 0.38:
        return "Please " + _lower_first(text)
    if style < 0.45:
        mark = text[len(text.rstrip("?.!")) :]
        return text.rstrip("?.!") + ", please" + mark
    if style < 0.5:
        return rng.choice(("Hi, ", "Hello, ", "Hey, ", "Hello! ", "Ok, ")) + text
    if style < 0.55 and wording.split()[0] in {"Tell", "Explain", "Describe", "Write", "Count"}:
        lead = rng.choice(("Can you ", "Could you ", "Would you "))
        return lead + _lower_first(text).rstrip("?.!") + "?"
    return text.upper() if style > 0.99 else text


def _lower_first(text: str) -> str:
    # "GPUs" and "I am" keep their capitals.
    return text if text[:2].isupper() or text.startswith("I ") else text[0].lower() + text[1:]


def _strange_question(rng: random.Random) -> str:
    while True:
        text = _restyle(_strange_text(rng), rng)
        if answers(text) is _FALLBACKS:
            return text


def _strange_text(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.1:
        script = rng.choice(_SCRIPTS)
        return "".join(rng.choice(script) for _ in range(rng.randint(1, 12)))
    if kind < 0.15:
        return f"What is {rng.randint(0, 99)} {rng.choice('+-*/')} {rng.randint(0, 99)}?"
    if kind < 0.4:
        small, count = _SMALL_WORDS.split(), rng.randint(1, 7)
        words = [_strange(rng) if rng.random() < 0.4 else rng.choice(small) for _ in range(count)]
        return " ".join(words).capitalize() + rng.choice("?.")
    one, many = _strange(rng), _strange(rng)
    article = rng.choice(("", "", "a ", "the "))
    return rng.choice(_STRANGE_FORMS).format(article + one, many, one)


def _strange(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.35:
        return rng.choice(_STRANGE.split())
    if kind < 0.6:
        return rng.choice(_side_words())
    if kind < 0.85:
        start, end = rng.choice(_side_words()), rng.choice(_side_words())
        return start[: rng.randint(1, 4)] + end[-rng.randint(2, 5) :]
    return "".join(rng.choice(_SYLLABLES.split()) for _ in range(rng.randint(2, 4)))


@cache
def _side_words() -> tuple[str, ...]:
    """Return words of the answers that no question is about: familiar, but no reason to answer."""
    asked = {word for key in _answers_by_key() for word in key.split()}
    said = {word for t in _topics() for text in t.answers for word in _key(text).split()}
    # "rivers" and "river" count as one word, so that no topic is taken for a side word.
    return tuple(sorted(w for w in said if len(w) > 3 and not {w, w + "s", w[:-1]} & asked))


def _system_prompt(rng: random.Random) -> str:
    if rng.random() < 0.6:
        return rng.choice(_SYSTEM_PROMPTS)
    return " ".join(_strange(rng) for _ in range(rng.randint(2, 8))).capitalize() + "."
