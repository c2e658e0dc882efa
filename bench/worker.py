"""The process of a peer that is no server: it reads runs from stdin and writes answers to stdout.

Only the standard library: peers import this in environments of their own.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict

from bench.answers import Answer

Run = Callable[[Sequence[str], int], list[Answer]]
"""Answers all prompts at the same time, each with so many new tokens."""


def serve(load: Callable[[], Run]) -> None:
    """Load the peer, then do runs until stdin ends. What libraries print goes to stderr."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def reply(data: object) -> None:
        replies.write(json.dumps(data) + "\n")
        replies.flush()

    run = load()
    reply({"ready": True})
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answers = run(asked["prompts"], asked["new_tokens"])
        except Exception as error:  # the edge of this process: the parent reports it
            reply({"error": f"{type(error).__name__}: {error}"})
        else:
            reply({"answers": [asdict(answer) for answer in answers]})
