"""All settings as one."""

import socket
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

from gateway.core.hosts import is_loopback
from gateway.settings.hub import HubSettings
from gateway.settings.hugging_face import HuggingFaceSettings
from gateway.settings.limits import LimitSettings
from gateway.settings.memory import MemorySettings
from gateway.settings.ollama import OllamaSettings
from gateway.settings.routing import RoutingSettings
from gateway.settings.server import ServerSettings
from gateway.settings.state import StateSettings
from gateway.settings.streams import StreamSettings


class Settings(
    LimitSettings,
    StreamSettings,
    HuggingFaceSettings,
    HubSettings,
    OllamaSettings,
    MemorySettings,
    RoutingSettings,
    StateSettings,
    ServerSettings,
):
    """What the operator decided. Frozen; passed in, never looked up."""

    @cached_property
    def resolved_pepper_file(self) -> Path:
        return self.key_pepper_file or self.data_dir / "key-pepper"

    @cached_property
    def resolved_secret_key_file(self) -> Path:
        return self.secret_key_file or self.data_dir / "secret-key"

    @cached_property
    def resolved_model_path(self) -> Path:
        return self.hf_model_path or self.data_dir / "models"

    @cached_property
    def ollama_is_neighbour(self) -> bool:
        """Whether the models of the Ollama server are in the memory that ours are in."""
        if self.ollama_shares_memory == "auto":
            return is_loopback(urlsplit(self.ollama_host).hostname or "")
        return self.ollama_shares_memory == "yes"

    @cached_property
    def max_asked(self) -> int:
        """How many requests one server of a provider may be at."""
        return self.max_streams + self.max_embeds

    @cached_property
    def resolved_node(self) -> str:
        return self.node or f"{socket.gethostname()}:{self.port}"
