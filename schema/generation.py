"""What the `generate` subscription is given, checked and turned into a request."""

from typing import cast

import strawberry

from gateway.core import messages
from gateway.core.errors import InvalidRequest
from gateway.core.messages import GenerateRequest, require_clean_text
from schema.inputs import OptionsInput, require_seconds
from schema.types import Role


@strawberry.input(description="One message of a chat.")
class MessageInput:
    role: Role = strawberry.field(description="Who says it.")
    content: str = strawberry.field(description="What is said.")


@strawberry.input(description="What to answer: either messages, or a prompt.")
class GenerateInput:
    model: str = strawberry.field(description="Its name, in any form that requests may use.")
    messages: list[MessageInput] | None = strawberry.field(
        default=None, description="A chat; the answer is its next message."
    )
    prompt: str | None = strawberry.field(
        default=None, description="One user message; a model without a chat template continues it."
    )
    options: OptionsInput | None = strawberry.field(
        default=None, description="How to choose tokens."
    )
    think: bool | None = strawberry.field(
        default=None, description="Ask for reasoning, or forbid it; null: as the model does."
    )
    keep_alive_seconds: float | None = strawberry.field(
        default=None, description="How long the model stays unused; negative: for ever."
    )
    detached: bool = strawberry.field(
        default=False, description="Go on when the subscription ends; GET /api/v1/streams reads it."
    )

    def to_core(self, request_id: str) -> GenerateRequest:
        """Return the request; raise InvalidRequest, and its kind, for what is wrong in it."""
        if (self.messages is None) == (self.prompt is None):
            raise InvalidRequest("Send either 'messages' or 'prompt', and not both.")
        if not (self.messages or self.prompt):
            raise InvalidRequest("There is nothing to answer: 'messages' or 'prompt' is empty.")
        return GenerateRequest(
            id=request_id,
            model=require_clean_text(self.model, "model"),
            messages=tuple(
                messages.Message(
                    role=cast(messages.Role, each.role.name.lower()),
                    parts=(messages.TextPart(require_clean_text(each.content, "content")),),
                )
                for each in self.messages or ()
            ),
            prompt=None if self.prompt is None else require_clean_text(self.prompt, "prompt"),
            options=(self.options or OptionsInput()).to_core("options."),
            think=self.think,
            keep_alive_s=require_seconds(self.keep_alive_seconds),
        )
