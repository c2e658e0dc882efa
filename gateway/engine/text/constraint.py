"""What a model may say next, where a grammar binds it. Belongs to one sequence and one thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.core.errors import InvalidRequest

if TYPE_CHECKING:
    from llguidance import LLMatcher
    from torch import Tensor


class Constraint:
    """Follows an answer token by token. Tokens that end an answer are allowed only where the
    grammar may end."""

    def __init__(self, matcher: LLMatcher, size: int) -> None:
        self._matcher = matcher
        self._size = size

    def allowed(self) -> Tensor:
        """Return which tokens may come next: a bool tensor of shape [vocabulary] on the CPU.

        Raises InvalidRequest when the grammar proves too complex to follow.
        """
        import torch

        mask = bytearray(self._matcher.compute_logit_bias())
        self._require_sound()
        return torch.frombuffer(mask, dtype=torch.bool)[: self._size]

    def restrict(self, scores: Tensor) -> None:
        """Set the scores [vocabulary] of all other tokens to minus infinity, in place."""
        import torch

        scores.masked_fill_(~self.allowed().to(scores.device), -torch.inf)

    def accept(self, token: int) -> None:
        """Go on by a token that was allowed."""
        self._matcher.consume_token(token)
        self._require_sound()

    @property
    def is_over(self) -> bool:
        """True once nothing but the end may follow."""
        return self._matcher.is_stopped()

    def _require_sound(self) -> None:
        if self._matcher.is_error():
            raise InvalidRequest(
                "The grammar of this answer is too complex to follow.",
                hint="Use a simpler schema: fewer alternatives, simpler patterns.",
                param="response_format",
            )
