"""The one error tree. Every fault that may reach a user is one of these; edges only render them.

GatewayError
├── InvalidRequest            the caller's fault: shape, type or range of the request
│   ├── InvalidText           text that no store or model can hold (NUL, lone surrogates)
│   ├── PayloadTooLarge       more bytes, messages or pixels than allowed
│   ├── UnsupportedCapability the model cannot do what was asked (images, tools, ...)
│   └── ContextLengthExceeded the prompt does not fit the model's context
├── ModelNotFound             nobody has a model of that name
├── AmbiguousModel            several have; the full names are listed
├── StreamNotFound            the caller has no such stream
├── StreamCancelled           somebody else ended the stream under its reader
├── StreamTakenOver           a newer reader goes on with the stream
├── StreamGap                 the events that would come next are no longer kept
├── Unauthenticated           no API key, or a wrong one
│   └── KeyRevoked            a key that was right once
├── Forbidden                 the key, or its want, does not allow this
├── KeyNotFound               no such API key
├── RateLimited               a key's requests of this minute are spent
├── TooManyStreams            a key has as many streams open as it may
├── ForeignOrigin             a web page of another origin, which is not allowed
├── Overloaded                a bounded queue is full: try again
├── NoRoom                    every resident model is in use: try again
├── ModelTooLarge             would not fit even an empty memory budget
├── ModelLoadFailed           the weights are there, but loading them failed
│   ├── ModelCorrupt          its files are damaged, or are not what they must be
│   └── ModelRefused          loading it would do what the operator does not allow
├── ModelInUse                its files cannot go while somebody needs them
├── CollectionNotFound        no such collection of models
├── CollectionExists          another collection has that name
├── DecisionNotFound          the caller has no such decision
├── RouteNotFound             no alias and no virtual model of that name
├── RouteReadOnly             it is in the configuration, and changed there alone
├── RouteChanged              somebody else changed it meanwhile
├── RotationNotFound          no such rotation
├── RotationInConfig          the config holds that rotation, and wins
├── ModelUnloaded             somebody unloaded the model under the caller
├── EngineFailed              the engine died or failed while it ran
├── StaleTransition           a state changed under the caller
├── ShuttingDown              the gateway is draining
├── DatabaseUnavailable       the database did not answer
├── Misconfigured             the settings are wrong; startup only
├── WrongRevision             the database schema is not at this version; startup only
├── SecretUnreadable          a stored secret was locked with a key that is not there
├── Internal                  a defect of ours
├── DownloadNotFound          no such download
├── UnsafeRepository          a repository whose files could do harm here
├── ChecksumMismatch          what was fetched is not what the Hub says it is
├── InsufficientStorage       the disk has no room for it
├── StorageFailed             the folder of models cannot be written, or is not what it seems
├── HubError                  the Hugging Face Hub's fault, or its word
│   ├── HubUnavailable        refused, reset, too slow, or it says that it is down
│   ├── HubOffline            the gateway is told never to ask it
│   ├── HubRateLimited        it wants no more requests for a while
│   ├── HubProtocolError      answered rubbish
│   ├── RepositoryNotFound    no such repository, revision or file, or not for this token
│   ├── GatedRepository       the repository wants a token with access
│   ├── HubTokenRejected      the Hub does not know the token
│   └── HubTokenRequired      the operator wants a token for this
└── ProviderError             the provider's fault
    ├── ProviderUnavailable   refused, reset, resolving failed: nobody there
    │   └── ProviderResting   not asked for now, as it failed too often
    ├── ProviderTimeout       there, but silent for too long
    ├── ProviderProtocolError answered rubbish
    ├── ProviderRejected      understood us and said no
    └── IncompleteStream      a stream that ended without its end

`gateway.problems` maps each class to an HTTP status, a hint and whether to retry.
"""

from collections.abc import Sequence
from typing import ClassVar, Self


class GatewayError(Exception):
    """Base of every error that may be shown to a user; `message` is a sentence for a person.

    `decision_id` names the decision that it came of, for whoever has no reply to say so.
    """

    code: ClassVar[str] = "internal"
    decision_id: str | None = None

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.param = param
        self.retry_after_s = retry_after_s

    def renewed(self) -> Self:
        """Return the same error without its traceback and cause, to keep or to raise again: the
        frames that those hold would stay in memory with it."""
        error = type(self).__new__(type(self), *self.args)
        error.__dict__.update(self.__dict__)
        return error


class InvalidRequest(GatewayError):
    code = "invalid_request"


class InvalidText(InvalidRequest):
    code = "invalid_text"


class PayloadTooLarge(InvalidRequest):
    code = "payload_too_large"


class UnsupportedCapability(InvalidRequest):
    code = "unsupported_capability"


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"


class ModelNotFound(GatewayError):
    """Nobody has the model; `nearest` are the names that look most like it."""

    code = "model_not_found"

    def __init__(
        self,
        name: str,
        nearest: Sequence[str] = (),
        message: str | None = None,
        hint: str | None = None,
    ) -> None:
        if nearest:
            hint = f"Did you mean {' or '.join(nearest)}?"
        super().__init__(message or f"There is no model '{name}'.", hint=hint, param="model")
        self.name = name
        self.nearest = tuple(nearest)


class AmbiguousModel(GatewayError):
    code = "ambiguous_model"

    def __init__(self, name: str, candidates: Sequence[str]) -> None:
        listed = ", ".join(candidates)
        super().__init__(
            f"'{name}' could be any of: {listed}.",
            hint="Use the full name, provider first.",
            param="model",
        )
        self.candidates = tuple(candidates)


class StreamNotFound(GatewayError):
    code = "stream_not_found"


class StreamCancelled(GatewayError):
    code = "stream_cancelled"


class StreamTakenOver(GatewayError):
    code = "stream_taken_over"


class StreamGap(GatewayError):
    code = "stream_gap"


class Unauthenticated(GatewayError):
    code = "unauthenticated"


class KeyRevoked(Unauthenticated):
    code = "key_revoked"


class Forbidden(GatewayError):
    code = "forbidden"


class KeyNotFound(GatewayError):
    code = "key_not_found"


class RateLimited(GatewayError):
    code = "rate_limited"


class TooManyStreams(GatewayError):
    code = "too_many_streams"


class ForeignOrigin(GatewayError):
    code = "foreign_origin"


class Overloaded(GatewayError):
    code = "overloaded"


class NoRoom(GatewayError):
    code = "no_room"


class ModelTooLarge(GatewayError):
    code = "model_too_large"


class ModelLoadFailed(GatewayError):
    code = "model_load_failed"


class ModelCorrupt(ModelLoadFailed):
    code = "model_corrupt"


class ModelRefused(ModelLoadFailed):
    code = "model_refused"


class ModelInUse(GatewayError):
    code = "model_in_use"


class CollectionNotFound(GatewayError):
    code = "collection_not_found"


class CollectionExists(GatewayError):
    code = "collection_exists"


class DecisionNotFound(GatewayError):
    code = "decision_not_found"


class RouteNotFound(GatewayError):
    code = "route_not_found"


class RouteReadOnly(GatewayError):
    code = "route_read_only"


class RouteChanged(GatewayError):
    code = "route_changed"


class RotationNotFound(GatewayError):
    code = "rotation_not_found"


class RotationInConfig(GatewayError):
    code = "rotation_in_config"


class ModelUnloaded(GatewayError):
    code = "model_unloaded"


class EngineFailed(GatewayError):
    code = "engine_failed"


class StaleTransition(GatewayError):
    code = "stale_transition"


class ShuttingDown(GatewayError):
    code = "shutting_down"


class DatabaseUnavailable(GatewayError):
    code = "database_unavailable"


class Misconfigured(GatewayError):
    """Wrong settings; `mistakes` holds one sentence for each, all of them at once."""

    code = "misconfigured"

    def __init__(self, mistakes: Sequence[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = tuple(mistakes)


class WrongRevision(GatewayError):
    code = "wrong_revision"


class SecretUnreadable(GatewayError):
    code = "secret_unreadable"


class Internal(GatewayError):
    code = "internal"


class DownloadNotFound(GatewayError):
    code = "download_not_found"


class UnsafeRepository(GatewayError):
    code = "unsafe_repository"


class ChecksumMismatch(GatewayError):
    code = "checksum_mismatch"


class InsufficientStorage(GatewayError):
    code = "insufficient_storage"


class StorageFailed(GatewayError):
    code = "storage_failed"


class HubError(GatewayError):
    code = "hub_error"


class HubUnavailable(HubError):
    code = "hub_unavailable"


class HubOffline(HubError):
    code = "hub_offline"


class HubRateLimited(HubError):
    code = "hub_rate_limited"


class HubProtocolError(HubError):
    code = "hub_protocol_error"


class RepositoryNotFound(HubError):
    code = "repository_not_found"


class GatedRepository(HubError):
    code = "gated_repository"


class HubTokenRejected(HubError):
    code = "hub_token_rejected"


class HubTokenRequired(HubError):
    code = "hub_token_required"


class ProviderError(GatewayError):
    """The provider's fault; `provider` names it."""

    code = "provider_error"

    def __init__(
        self,
        provider: str,
        message: str,
        *,
        hint: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, hint=hint, retry_after_s=retry_after_s)
        self.provider = provider


class ProviderUnavailable(ProviderError):
    code = "provider_unavailable"


class ProviderResting(ProviderUnavailable):
    """It failed too often in a row to be asked again before `retry_after_s`."""

    code = "provider_resting"


class ProviderTimeout(ProviderError):
    code = "provider_timeout"


class ProviderProtocolError(ProviderError):
    code = "provider_protocol_error"


class ProviderRejected(ProviderError):
    code = "provider_rejected"


class IncompleteStream(ProviderError):
    code = "incomplete_stream"
