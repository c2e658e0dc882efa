"""Prepares what listens to a model's answer, and what binds it. Blocking; never in the worker."""

import secrets
from collections.abc import Sequence

import msgspec

from gateway.core.dialects import Dialect
from gateway.core.errors import InvalidRequest, UnsupportedCapability
from gateway.core.events import Delta
from gateway.core.messages import GenerateRequest, Options
from gateway.core.names import ModelRef
from gateway.engine.decoding.loaded import LoadedModel
from gateway.engine.sampling.sampler import Logprob
from gateway.engine.text.chat import fit_id
from gateway.engine.text.constraint import Constraint
from gateway.engine.text.grammar import GrammarWriter, is_bound, schemas_of, write_schema
from gateway.engine.text.interpreter import Interpreter
from gateway.engine.text.logprobs import LogprobReporter
from gateway.engine.text.transcript import Transcript
from gateway.engine.text.vocabulary import Vocabulary


class Speech(msgspec.Struct, frozen=True):
    """All of one answer that is not computing it."""

    transcript: Transcript
    constraint: Constraint | None
    reporter: LogprobReporter | None

    @property
    def is_over(self) -> bool:
        """True once there is nothing more to say."""
        return self.transcript.is_over or (self.constraint is not None and self.constraint.is_over)

    def say(self, token: int, logprob: Logprob | None = None) -> list[Delta]:
        """Return what can be told now that `token` was said."""
        known = None
        if self.reporter is not None and logprob is not None:
            known = self.reporter.describe(token, logprob)
        return self.transcript.push(token, known)


class Begun(msgspec.Struct, frozen=True):
    """The beginning of an answer that is gone on with: its tokens, and what is untold of it."""

    ids: Sequence[int] = ()
    untold: Sequence[Delta] = ()


def take_up(
    request: GenerateRequest, ref: ModelRef, prompt: list[int], speech: Speech, loaded: LoadedModel
) -> Begun:
    """Have `speech` go on from what was said of the answer to `prompt`, if anything was: from the
    tokens of the model `ref` where they are its own, else from the text.

    Raises UnsupportedCapability for what is no text and was said by another model.
    """
    said = request.said
    if said is None:
        return Begun()
    if said.source == ref and said.ids and max(said.ids) < loaded.vocabulary_size:
        return Begun(said.ids, speech.transcript.replay(said.ids, said))
    if said.calls or not said.text:
        raise UnsupportedCapability(f"{ref} cannot go on with what another model began.")
    ids = loaded.encoder.encode_said(said, prompt, is_raw=loaded.encoder.is_raw(request))
    speech.transcript.follow(ids, said.text)
    return Begun(ids)


def prepare_speech(request: GenerateRequest, prompt: list[int], loaded: LoadedModel) -> Speech:
    """Return how the answer to `prompt` is to be read and bound.

    Raises InvalidRequest for a schema or a token that cannot be, and UnsupportedCapability for
    what this model cannot be made to do.
    """
    encoder, options = loaded.encoder, request.options
    _require_tokens(options, loaded.vocabulary_size)
    is_raw = encoder.is_raw(request)
    is_reasoning = not is_raw and encoder.begins_reasoning(prompt)
    reporter = None
    if options.logprobs is not None:
        reporter = LogprobReporter(loaded.vocabulary, encoder.spell)
    interpreter = Interpreter(
        Dialect() if is_raw else encoder.dialect,
        () if request.tool_choice == "none" else request.tools,
        new_id=lambda: _new_id(encoder.dialect),
        is_reasoning=is_reasoning,
    )
    transcript = Transcript(
        encoder.decode if is_raw else encoder.decode_chat,
        interpreter,
        options.stop,
        one_call=not request.parallel_tool_calls,
        byte_tokens=encoder.byte_tokens,
        tells_ids=request.tells_ids,
    )
    constraint = None
    if is_bound(request):
        writer = GrammarWriter(encoder.dialect, loaded.vocabulary.marks)
        grammar = writer.write(request, is_raw=is_raw, is_reasoning=is_reasoning)
        constraint = _compile(grammar, request, loaded.vocabulary)
    return Speech(transcript, constraint, reporter)


def _compile(grammar: str, request: GenerateRequest, vocabulary: Vocabulary) -> Constraint:
    try:
        return vocabulary.compile(grammar)
    except InvalidRequest as error:
        raise _blame(request, vocabulary) or error from None


def _blame(request: GenerateRequest, vocabulary: Vocabulary) -> InvalidRequest | None:
    """Return what is wrong with the first schema that does not compile alone."""
    for param, schema in schemas_of(request):
        try:
            vocabulary.compile(f"start: {write_schema(schema, param)}")
        except InvalidRequest as error:
            return InvalidRequest(
                f"The schema cannot be followed: {error.message}",
                hint="Use the part of JSON Schema that is named in the documentation.",
                param=param,
            )
    return None


def _require_tokens(options: Options, size: int) -> None:
    named = {"stop_token_ids": options.stop_ids, "logit_bias": [i for i, _ in options.logit_bias]}
    for param, ids in named.items():
        for token in ids:
            if not 0 <= token < size:
                raise InvalidRequest(
                    f"'{param}' names token {token}; this model has tokens 0 to {size - 1}.",
                    param=param,
                )


def _new_id(dialect: Dialect) -> str:
    length = next((form.id_length for form in dialect.calls), None)
    return fit_id(f"call_{secrets.token_hex(12)}", length)
