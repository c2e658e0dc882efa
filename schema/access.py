"""Which scope opens each field of the roots, and the refusal of an operation that lacks one.

Looked at in the document, before anything is executed: an operation with one field that may not be
asked is refused whole. What is in no table is for ADMIN only.
"""

from collections.abc import Iterator, Mapping

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    InlineFragmentNode,
    OperationDefinitionNode,
    OperationType,
    SelectionSetNode,
)

from gateway.core.errors import Forbidden
from gateway.core.keys import Caller, KeyScope

_ANY = frozenset(KeyScope)
_INFER = frozenset({KeyScope.INFER})
_LOOK = frozenset({KeyScope.INFER, KeyScope.MANAGE})
_MANAGE = frozenset({KeyScope.MANAGE})
_ADMIN = frozenset({KeyScope.ADMIN})

FIELD_SCOPES: Mapping[OperationType, Mapping[str, frozenset[KeyScope]]] = {
    OperationType.QUERY: {
        "availableModels": _LOOK,
        "providers": _LOOK,
        "sessions": _MANAGE,
        "modelStatus": _LOOK,
        "loadedModels": _LOOK,
        "modelConfig": _MANAGE,
        "planLoad": _MANAGE,
        "streams": _INFER,
        "library": _MANAGE,
        "collections": _LOOK,
        "exportLibrary": _MANAGE,
        "hubModels": _MANAGE,
        "hubModel": _MANAGE,
        "hubRecommended": _LOOK,
        "hfToken": _MANAGE,
        "downloads": _MANAGE,
        "download": _MANAGE,
        "planDownload": _MANAGE,
        "decision": _LOOK,
        "decisions": _LOOK,
        "explainRoute": _LOOK,
        "routes": _LOOK,
        "rotations": _MANAGE,
        "rotation": _MANAGE,
        "rotationHistory": _MANAGE,
        "memory": _MANAGE,
        "version": _ANY,
    },
    OperationType.MUTATION: {
        "loadModel": _MANAGE,
        "unloadModel": _MANAGE,
        "configureModel": _MANAGE,
        "stopStream": _INFER,
        "verifyModel": _MANAGE,
        "deleteModel": _MANAGE,
        "cleanModels": _MANAGE,
        "createCollection": _MANAGE,
        "changeCollection": _MANAGE,
        "deleteCollection": _MANAGE,
        "addToCollection": _MANAGE,
        "removeFromCollection": _MANAGE,
        "importLibrary": _MANAGE,
        "setRoute": _MANAGE,
        "deleteRoute": _MANAGE,
        "setHfToken": _MANAGE,
        "deleteHfToken": _MANAGE,
        "startDownload": _MANAGE,
        "pauseDownload": _MANAGE,
        "resumeDownload": _MANAGE,
        "cancelDownload": _MANAGE,
        "deleteDownload": _MANAGE,
        "setRotation": _MANAGE,
        "deleteRotation": _MANAGE,
        "pauseRotation": _MANAGE,
        "resumeRotation": _MANAGE,
        "advanceRotation": _MANAGE,
    },
    OperationType.SUBSCRIPTION: {
        "modelStateChanged": _LOOK,
        "generate": _INFER,
        "downloadProgress": _MANAGE,
        "rotationChanged": _MANAGE,
    },
}
"""Any of a field's scopes opens it. Introspection is for every key."""

_META = frozenset({"__typename", "__schema", "__type"})


def find_forbidden(document: DocumentNode, name: str | None, caller: Caller) -> list[GraphQLError]:
    """Return an error for each root field that the caller may not ask, of the operation `name` or
    the only one. The document must be valid."""
    fragments = {
        definition.name.value: definition
        for definition in document.definitions
        if isinstance(definition, FragmentDefinitionNode)
    }
    errors = []
    for operation in document.definitions:
        if not isinstance(operation, OperationDefinitionNode):
            continue
        if name is not None and (operation.name is None or operation.name.value != name):
            continue
        scopes = FIELD_SCOPES[operation.operation]
        for field in _root_fields(operation.selection_set, fragments):
            asked = field.name.value
            accepted = _ANY if asked in _META else scopes.get(asked, _ADMIN)
            if not caller.may(accepted):
                errors.append(_refusal(field, accepted))
    return errors


def _root_fields(
    selections: SelectionSetNode, fragments: Mapping[str, FragmentDefinitionNode]
) -> Iterator[FieldNode]:
    """Yield every field at the root; fragments do not spread themselves, which was checked."""
    for selection in selections.selections:
        if isinstance(selection, FieldNode):
            yield selection
        elif isinstance(selection, FragmentSpreadNode):
            yield from _root_fields(fragments[selection.name.value].selection_set, fragments)
        elif isinstance(selection, InlineFragmentNode):
            yield from _root_fields(selection.selection_set, fragments)


def _refusal(field: FieldNode, accepted: frozenset[KeyScope]) -> GraphQLError:
    names = " or ".join(scope for scope in KeyScope if scope in accepted)
    cause = Forbidden(f"This key lacks the scope {names}, which '{field.name.value}' needs.")
    return GraphQLError(cause.message, [field], original_error=cause)
