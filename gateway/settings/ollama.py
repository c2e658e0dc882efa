"""The Ollama server."""

from typing import Annotated

from pydantic import AfterValidator, Field

from gateway.settings.values import Group, Positive, parse_ollama_host


class OllamaSettings(Group):
    """The Ollama server."""

    ollama_host: Annotated[str, AfterValidator(parse_ollama_host)] = Field(
        "http://127.0.0.1:11434", description="URL of the Ollama server."
    )
    ollama_num_ctx: int = Field(
        0, ge=0, description="Context length asked of Ollama with every request; 0: Ollama decides."
    )
    ollama_truncate: bool = Field(
        False, description="Whether Ollama may cut prompts that are too long; requests may differ."
    )
    ollama_connect_timeout_s: Positive = Field(2.0, description="Seconds to connect.")
    ollama_first_byte_timeout_s: Positive = Field(
        300.0, description="Seconds to the first byte of an answer; covers a model load."
    )
    ollama_idle_timeout_s: Positive = Field(60.0, description="Seconds between two tokens.")
    ollama_control_timeout_s: Positive = Field(0.7, description="Seconds for list, ps and show.")
