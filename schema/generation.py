"""What the `generate` subscription is given: the native face's body in GraphQL's terms.

Its values are handed to the native face's reader; only options, which other fields take as well,
are read here.
"""

from typing import Any

import strawberry
from msgspec.structs import replace
from strawberry.scalars import JSON

from gateway.core.messages import GenerateRequest
from schema.context import ReadBody
from schema.inputs import OptionsInput, require_seconds
from schema.types import ResponseFormatType, Role, ThinkLevel

_CHOICES = ("auto", "none", "required")


@strawberry.input(description="A call of a tool that the model made earlier in the chat.")
class ToolCallInput:
    name: str = strawberry.field(description="The tool.")
    arguments: str = strawberry.field(default="{}", description="A JSON object as text.")
    id: str | None = strawberry.field(default=None, description="Id of the call.")

    def to_values(self) -> dict[str, Any]:
        return {"id": self.id, "function": {"name": self.name, "arguments": self.arguments}}


@strawberry.input(description="One message of a chat.")
class MessageInput:
    role: Role = strawberry.field(description="Who says it.")
    content: str | None = strawberry.field(
        default=None, description="What is said; only ASSISTANT may go without."
    )
    images: list[str] | None = strawberry.field(
        default=None, description="PNG, JPEG, GIF or WebP files in base64."
    )
    reasoning: str | None = strawberry.field(default=None, description="What the model thought.")
    tool_calls: list[ToolCallInput] | None = strawberry.field(
        default=None, description="The tools that the model called."
    )
    tool_call_id: str | None = strawberry.field(
        default=None, description="Of TOOL: the call that this is the result of."
    )
    tool_name: str | None = strawberry.field(
        default=None, description="Of TOOL: the tool that this is the result of."
    )

    def to_values(self) -> dict[str, Any]:
        return {
            "role": self.role.name.lower(),
            "content": self.content,
            "images": self.images,
            "reasoning": self.reasoning,
            "tool_calls": [call.to_values() for call in self.tool_calls or ()],
            "tool_call_id": self.tool_call_id,
            "tool_name": self.tool_name,
        }


@strawberry.input(description="A function that the model may call.")
class ToolInput:
    name: str = strawberry.field(description="Its name.")
    description: str | None = strawberry.field(default=None, description="What it does.")
    parameters: JSON | None = strawberry.field(
        default=None, description="What it takes, as a JSON Schema."
    )

    def to_values(self) -> dict[str, Any]:
        described = {"description": self.description, "parameters": self.parameters}
        return {"function": {"name": self.name, **described}}


@strawberry.input(description="What form the answer must have.")
class ResponseFormatInput:
    type: ResponseFormatType = strawberry.field(description="Its kind.")
    schema: JSON | None = strawberry.field(
        default=None, description="Of JSON_SCHEMA: the JSON Schema that it follows."
    )

    def to_values(self) -> dict[str, Any]:
        return {"type": self.type.name.lower(), "schema": self.schema}


@strawberry.input(description="What to answer: either messages, or a prompt with its images.")
class GenerateInput:
    model: str = strawberry.field(description="Its name, in any form that requests may use.")
    messages: list[MessageInput] | None = strawberry.field(
        default=None, description="A chat; the answer is its next message."
    )
    prompt: str | None = strawberry.field(
        default=None, description="One user message; a model without a chat template continues it."
    )
    images: list[str] | None = strawberry.field(
        default=None, description="Images of the prompt, in base64."
    )
    options: OptionsInput | None = strawberry.field(
        default=None, description="How to choose tokens."
    )
    tools: list[ToolInput] | None = strawberry.field(
        default=None, description="The functions that the model may call."
    )
    tool_choice: str | None = strawberry.field(
        default=None, description="auto, none, required, or the name of the tool to call."
    )
    parallel_tool_calls: bool = strawberry.field(
        default=True, description="False: the answer ends with its first call."
    )
    response_format: ResponseFormatInput | None = strawberry.field(
        default=None, description="What form the answer must have."
    )
    think: bool | None = strawberry.field(
        default=None, description="Ask for reasoning, or forbid it; null: as the model does."
    )
    think_level: ThinkLevel | None = strawberry.field(
        default=None, description="Ask for so much reasoning; goes before think."
    )
    keep_alive_seconds: float | None = strawberry.field(
        default=None, description="How long the model stays unused; negative: for ever."
    )
    detached: bool = strawberry.field(
        default=False, description="Go on when the subscription ends; GET /api/v1/streams reads it."
    )
    continue_on_failure: bool | None = strawberry.field(
        default=None,
        description="Go on with another model if the answer breaks; null: as the rule has it.",
    )
    truncate: bool | None = strawberry.field(
        default=None, description="Let Ollama cut a prompt that is too long; null: as it is set."
    )

    def to_core(self, request_id: str, read_body: ReadBody) -> GenerateRequest:
        """Return the request; raise InvalidRequest, and its kind, for what is wrong in it."""
        options = (self.options or OptionsInput()).to_core("options.")
        return replace(read_body(self._to_values(), request_id), options=options)

    def _to_values(self) -> dict[str, Any]:
        level, format_ = self.think_level, self.response_format
        messages = self.messages
        return {
            "model": self.model,
            "messages": None if messages is None else [each.to_values() for each in messages],
            "prompt": self.prompt,
            "images": self.images,
            "tools": [tool.to_values() for tool in self.tools or ()],
            "tool_choice": _describe_choice(self.tool_choice),
            "parallel_tool_calls": self.parallel_tool_calls,
            "response_format": format_.to_values() if format_ else None,
            "think": level.name.lower() if level else self.think,
            "keep_alive": require_seconds(self.keep_alive_seconds),
            "continue_on_failure": self.continue_on_failure,
            "truncate": self.truncate,
        }


def _describe_choice(choice: str | None) -> Any:
    if choice is None or choice in _CHOICES:
        return choice
    return {"function": {"name": choice}}
