"""A scripted Ollama server over real HTTP on loopback, exact to the byte; records what it saw.

Without a script it behaves as Ollama does (docs/api.md, server/routes.go). A script takes over the
answers of one model's chat and generate, or of one route. By hand:

    python -m tests.integration.ollama_peer --port 11434
"""

from tests.integration.ollama_peer.exchange import Do, Exchange, Seen, Step
from tests.integration.ollama_peer.lines import CREATED, chat_end, chat_line, line, tool_call
from tests.integration.ollama_peer.models import Model
from tests.integration.ollama_peer.peer import FOREVER, SOON, OllamaPeer
from tests.integration.ollama_peer.scripts import Script, answer, chunks, raw
from tests.integration.ollama_peer.server import PeerServer

__all__ = [
    "CREATED",
    "FOREVER",
    "SOON",
    "Do",
    "Exchange",
    "Model",
    "OllamaPeer",
    "PeerServer",
    "Script",
    "Seen",
    "Step",
    "answer",
    "chat_end",
    "chat_line",
    "chunks",
    "line",
    "raw",
    "tool_call",
]
