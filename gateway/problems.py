"""What each error means to a user: HTTP status, hint, and whether trying again makes sense.

The one home of that mapping. Renderers (HTTP, SSE, OpenAI, GraphQL, CLI) only change its shape.
"""

import msgspec

from gateway.core import errors


class Problem(msgspec.Struct, frozen=True):
    """An error as a user may see it; holds no secret and no traceback."""

    code: str
    status: int
    message: str
    hint: str | None
    retryable: bool
    retry_after_s: float | None = None
    param: str | None = None


class _Kind(msgspec.Struct, frozen=True):
    status: int
    retryable: bool = False
    hint: str | None = None
    retry_after_s: float | None = None


_KINDS: dict[type[errors.GatewayError], _Kind] = {
    errors.GatewayError: _Kind(500),
    errors.InvalidRequest: _Kind(400),
    errors.InvalidText: _Kind(422, hint="Send text without NUL characters and lone surrogates."),
    errors.PayloadTooLarge: _Kind(413, hint="Send less, or let the operator raise the limit."),
    errors.UnsupportedCapability: _Kind(400, hint="Choose a model whose capabilities include it."),
    errors.ContextLengthExceeded: _Kind(400, hint="Shorten the messages or lower max_tokens."),
    errors.ModelNotFound: _Kind(404, hint="GET /v1/models lists the names."),
    errors.AmbiguousModel: _Kind(400),
    errors.StreamNotFound: _Kind(404),
    errors.StreamCancelled: _Kind(409, True, "Somebody else ended it; asking again starts anew."),
    errors.StreamTakenOver: _Kind(409, hint="A stream has one reader: the newest."),
    errors.StreamGap: _Kind(410, hint="Read with a later Last-Event-ID, or ask anew."),
    errors.Unauthenticated: _Kind(
        401, hint="Send a key as `Authorization: Bearer` or `x-api-key`; `gateway keys` makes them."
    ),
    errors.KeyRevoked: _Kind(401, hint="Ask the operator for another key."),
    errors.Forbidden: _Kind(403),
    errors.KeyNotFound: _Kind(404, hint="GET /api/v1/keys and `gateway keys list` show them."),
    errors.RateLimited: _Kind(429, True, "Wait as long as Retry-After says.", 1.0),
    errors.TooManyStreams: _Kind(429, True, "Wait until one of them has ended.", 1.0),
    errors.ForeignOrigin: _Kind(
        403, hint="The operator can allow the page's origin in GATEWAY_CORS_ORIGINS."
    ),
    errors.Overloaded: _Kind(503, True, "Too many requests at once; try again.", 1.0),
    errors.NoRoom: _Kind(503, True, "Every loaded model is in use; try again.", 2.0),
    errors.ModelTooLarge: _Kind(
        422, hint="Use a smaller model or raise GATEWAY_MEMORY_BUDGET_BYTES."
    ),
    errors.ModelLoadFailed: _Kind(500, hint="Check the model's files; the log has the traceback."),
    errors.ModelCorrupt: _Kind(
        422, hint="Download it again; `gateway models verify` looks at it anew."
    ),
    errors.ModelRefused: _Kind(403, hint="The operator can allow it; see docs/library.md."),
    errors.ModelInUse: _Kind(409, True, "Unload it, or wait until nobody uses it."),
    errors.CollectionNotFound: _Kind(404, hint="GET /api/v1/collections lists them."),
    errors.CollectionExists: _Kind(409, hint="Choose another name."),
    errors.DecisionNotFound: _Kind(404, hint="GET /api/v1/decisions lists them."),
    errors.RouteNotFound: _Kind(404, hint="GET /api/v1/routes lists them."),
    errors.RouteReadOnly: _Kind(409, hint="Change the configuration, or choose another name."),
    errors.RouteChanged: _Kind(412, hint="Look at it as it is now, and change that."),
    errors.RotationNotFound: _Kind(404, hint="GET /api/v1/rotations lists them."),
    errors.RotationInConfig: _Kind(409, hint="Change it in the config; then start anew."),
    errors.ModelUnloaded: _Kind(409, True, "Asking again loads it anew."),
    errors.EngineFailed: _Kind(500, True, "The engine failed while it ran; try again."),
    errors.StaleTransition: _Kind(409, True, "The state changed meanwhile; look and try again."),
    errors.ShuttingDown: _Kind(503, True, "The gateway is restarting; try again.", 2.0),
    errors.DatabaseUnavailable: _Kind(503, True, "The database did not answer; try again.", 2.0),
    errors.Misconfigured: _Kind(500, hint="`gateway check` lists every mistake."),
    errors.WrongRevision: _Kind(500, hint="Run `gateway db upgrade`."),
    errors.SecretUnreadable: _Kind(
        500, hint="Give the key that it was stored with in GATEWAY_SECRET_KEY, or set it anew."
    ),
    errors.Internal: _Kind(500, hint="This is a defect of the gateway; the log has the traceback."),
    errors.DownloadNotFound: _Kind(404, hint="GET /api/v1/downloads lists them."),
    errors.UnsafeRepository: _Kind(422, hint="Do not use this repository; tell the Hub of it."),
    errors.ChecksumMismatch: _Kind(502, True, "Nothing of it was kept; try again."),
    errors.InsufficientStorage: _Kind(507, hint="Make room, then resume the download."),
    errors.StorageFailed: _Kind(500, hint="Look at the folder of the Hub's cache; see the log."),
    errors.HubError: _Kind(502, True),
    errors.HubUnavailable: _Kind(503, True, "Is the Hub reachable from here? Try again.", 5.0),
    errors.HubOffline: _Kind(503, hint="The operator can unset HF_HUB_OFFLINE."),
    errors.HubRateLimited: _Kind(
        503, True, "Wait as long as Retry-After says; a token has higher limits.", 30.0
    ),
    errors.HubProtocolError: _Kind(502, True, "Is GATEWAY_HUB_ENDPOINT the address of a Hub?"),
    errors.RepositoryNotFound: _Kind(
        404, hint="Check the name; a private repository needs a token that may read it."
    ),
    errors.GatedRepository: _Kind(403, hint="Ask for access at its page on the Hub."),
    errors.HubTokenRejected: _Kind(422, hint="Make one at huggingface.co/settings/tokens."),
    errors.HubTokenRequired: _Kind(403, hint="`gateway token set` sets one."),
    errors.ProviderError: _Kind(502, True),
    errors.ProviderResting: _Kind(503, True, "It is looked after and asked again soon.", 1.0),
    errors.ProviderUnavailable: _Kind(503, True, "Is the provider running and reachable?", 2.0),
    errors.ProviderTimeout: _Kind(504, True, "The provider is slow or hangs; try again."),
    errors.ProviderProtocolError: _Kind(502, True, "The provider answered something unreadable."),
    errors.ProviderRejected: _Kind(400),
    errors.IncompleteStream: _Kind(502, True, "The provider's stream broke off; try again."),
}

_UNEXPECTED = errors.Internal("Something went wrong inside the gateway.")


def describe(error: BaseException) -> Problem:
    """Return what a user is told about `error`; an unknown exception reveals nothing of itself."""
    known = error if isinstance(error, errors.GatewayError) else _UNEXPECTED
    kind = next(_KINDS[base] for base in type(known).__mro__ if base in _KINDS)
    retry_after_s = known.retry_after_s if known.retry_after_s is not None else kind.retry_after_s
    return Problem(
        code=known.code,
        status=kind.status,
        message=known.message,
        hint=known.hint or kind.hint,
        retryable=kind.retryable,
        retry_after_s=retry_after_s,
        param=known.param,
    )
