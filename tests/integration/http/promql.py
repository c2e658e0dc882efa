"""What a query of Prometheus asks for: metrics, labels, functions. Reads no more than that."""

import re
from dataclasses import dataclass, field

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_RANGE = re.compile(r"\[[^\]]*\]")
_SELECTOR = re.compile(r"([a-z_:][a-z0-9_:]*)\s*\{([^}]*)\}")
_GROUPING = re.compile(r"\b(?:by|on|ignoring|without|group_left|group_right)\s*\(([^)]*)\)")
_WORD = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_KEYWORDS = frozenset({"by", "on", "ignoring", "without", "group_left", "group_right", "and", "or"})
FUNCTIONS = frozenset({"sum", "max", "rate", "increase", "histogram_quantile", "max_over_time"})
"""Those that the queries use. One that is not here is a new one, or a typing error."""


@dataclass
class Query:
    """The names in a query. `grouped` are the labels that its groupings name."""

    metrics: set[str] = field(default_factory=set)
    matched: dict[str, set[str]] = field(default_factory=dict)
    grouped: set[str] = field(default_factory=set)
    functions: set[str] = field(default_factory=set)


def parse(text: str) -> Query:
    query = Query()
    text = _RANGE.sub(" ", _STRING.sub('""', text))
    for name, matchers in _SELECTOR.findall(text):
        query.metrics.add(name)
        query.matched.setdefault(name, set()).update(_WORD.findall(matchers))
    text = _SELECTOR.sub(" ", text)
    for labels in _GROUPING.findall(text):
        query.grouped |= set(_WORD.findall(labels))
    text = _GROUPING.sub(" ", text)
    for found in _WORD.finditer(text):
        is_call = text[found.end() :].lstrip().startswith("(")
        if is_call and found[0] not in _KEYWORDS:
            query.functions.add(found[0])
        elif not is_call and found[0] not in _KEYWORDS:
            query.metrics.add(found[0])
    return query
