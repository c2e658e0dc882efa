"""The codec between the gateway and a model's process: what goes in comes out, rubbish does not."""

import inspect
import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core import errors
from gateway.core.cards import ModelCard
from gateway.core.dialects import read_dialect
from gateway.core.embeddings import Embeddings, EmbedRequest
from gateway.core.errors import AmbiguousModel, GatewayError, Internal, ModelNotFound, NoRoom
from gateway.core.events import (
    Event,
    Finished,
    ReasoningDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    Usage,
    Waiting,
)
from gateway.core.loading import LoadConfig
from gateway.core.messages import (
    GenerateRequest,
    ImagePart,
    Message,
    Options,
    ResponseFormat,
    TextPart,
    Tool,
    ToolCall,
)
from gateway.core.models import LocalModel
from gateway.core.names import ModelRef
from gateway.engine.child import wire as child_wire
from gateway.engine.child.wire import (
    Ask,
    AskVectors,
    Beat,
    Cancel,
    Close,
    Embedded,
    Fault,
    Finish,
    FrameSplitter,
    Grant,
    Lent,
    Loading,
    Need,
    Open,
    Opened,
    Refused,
    Released,
    Returned,
    Told,
    WireError,
    decode_from_child,
    decode_to_child,
    encode_frame,
    to_error,
    to_fault,
)
from gateway.engine.decoding.loaded import Recipe
from gateway.engine.opening import EngineSpec

REF = ModelRef("huggingface", "tiny", "main")
SPEC = EngineSpec(
    REF,
    LocalModel("tiny", "/m", 9, card=ModelCard("LlamaForCausalLM", context_length=9)),
    LoadConfig("cpu", quantization="int8", context_length=5),
    max_active=1,
    max_queue=2,
    recipe=Recipe(packs=True),
)
CALL = ToolCall("1", "f", "{}")
REQUEST = GenerateRequest(
    id="r",
    model="tiny",
    messages=(
        Message("user", (TextPart("see \U0001f642"), ImagePart(b"\x00\xff" * 9))),
        Message("assistant", tool_calls=(CALL,), reasoning="hm"),
        Message("tool", (TextPart("4"),), tool_call_id="1", tool_name="f"),
    ),
    options=Options(
        temperature=0.5,
        seed=2**62,
        stop=("a", "b"),
        stop_ids=(7,),
        logprobs=2,
        logit_bias=((3, -1.5),),
    ),
    caller="somebody",
    tool_choice="f",
    parallel_tool_calls=False,
    tools=(Tool("f", parameters={"type": "object", "properties": {"n": {"enum": [1, None]}}}),),
    response_format=ResponseFormat("json_schema", {"type": "object"}),
    think="high",
    keep_alive_s=-1.0,
)
EVENTS: list[Event] = [
    Waiting("prefill", fraction=0.5),
    Started(REF, 3, queue_ms=1.5),
    TextDelta("é", 2),
    TextDelta("a", 1, (TokenLogprob("a", b"\xff", -0.5, (TokenLogprob("b", b"b", -1.0),)),)),
    ReasoningDelta("so"),
    ToolCallDelta(0, CALL),
    Finished("stop", Usage(3, 4)),
]
FAULT = to_fault(NoRoom("No."))
TO_CHILD = [
    Open(SPEC, 20, 2**40),
    Ask(1, REQUEST),
    AskVectors(2, EmbedRequest("r", "tiny", ("a text", (1, 2, 3)), dimensions=2)),
    Grant(1, 32),
    Cancel(1),
    Lent(3, granted=True),
    Finish(),
    Close(),
]
FROM_CHILD = [
    Loading(5, 9),
    Opened(2**40, 7, True, Recipe(packs=True, way="stack")),
    Opened(2**40, 7, False, None),
    Embedded(2, Embeddings(REF, (b"\x00\xff", b""), Usage(3))),
    Need(3, 2**40, True),
    Returned(2**40),
    Refused(FAULT),
    *(Told(1, event) for event in EVENTS),
    Released(1),
    Released(1, FAULT),
    Beat(5),
]


def payload(frame: bytes) -> bytes:
    [only] = FrameSplitter().push(frame)
    return only


@pytest.mark.parametrize("message", TO_CHILD, ids=lambda m: type(m).__name__)
def test_what_the_gateway_says_arrives_as_it_was(message: child_wire.ToChild) -> None:
    assert decode_to_child(payload(encode_frame(message))) == message


@pytest.mark.parametrize("message", FROM_CHILD, ids=lambda m: type(m).__name__)
def test_what_the_child_says_arrives_as_it_was(message: child_wire.FromChild) -> None:
    assert decode_from_child(payload(encode_frame(message))) == message


def test_every_message_is_tried_here() -> None:
    assert {type(m) for m in TO_CHILD} == set(child_wire.ToChild.__args__)
    assert {type(m) for m in FROM_CHILD} == set(child_wire.FromChild.__args__)


@given(st.lists(st.integers(0, 300), max_size=20))
def test_frames_are_found_wherever_the_stream_is_cut(cuts: list[int]) -> None:
    stream = b"".join(encode_frame(Told(i, TextDelta("x" * i))) for i in range(9))
    splitter, messages = FrameSplitter(), []
    at = 0
    for cut in [*cuts, len(stream)]:
        for found in splitter.push(stream[at : at + cut]):
            messages.append(decode_from_child(found))
        at += cut
    assert messages == [Told(i, TextDelta("x" * i)) for i in range(9)]


def test_a_length_that_nobody_would_send_is_refused_before_it_is_waited_for() -> None:
    with pytest.raises(WireError, match="4294967295 bytes"):
        FrameSplitter().push(b"\xff\xff\xff\xff")


def test_a_request_above_the_largest_frame_is_the_caller_s_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(child_wire, "MAX_FRAME_BYTES", 100)
    with pytest.raises(errors.PayloadTooLarge, match="100"):
        encode_frame(Ask(1, REQUEST))


def test_what_msgpack_cannot_hold_is_the_caller_s_fault() -> None:
    deep: dict[str, object] = {}
    for _ in range(10_000):
        deep = {"a": deep}
    for hostile in ({"n": 2**64}, {"s": "\ud800"}, deep):
        request = GenerateRequest("r", "m", tools=(Tool("f", parameters=hostile),))
        with pytest.raises(errors.InvalidRequest, match="cannot be told"):
            encode_frame(Ask(1, request))


def test_what_is_known_of_the_files_of_a_model_arrives_as_it_was() -> None:
    template = '<think>{{ tools }}<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    card = ModelCard("Qwen3ForCausalLM", "qwen3", dialect=read_dialect([template]))
    assert card.dialect.calls and card.dialect.reasoning
    spec = msgspec.structs.replace(SPEC, files=LocalModel("tiny", "/m", 9, card=card))
    message = decode_to_child(payload(encode_frame(Open(spec, 20, 0))))
    assert isinstance(message, Open)
    assert message.spec == spec


@given(st.binary(max_size=200))
def test_rubbish_is_a_wire_error_and_nothing_else(data: bytes) -> None:
    for decode in (decode_to_child, decode_from_child):
        try:
            decode(data)
        except WireError:
            pass
        else:
            # What decodes is a message: that it comes out again proves it.
            assert isinstance(msgspec.msgpack.decode(data), list)


@pytest.mark.parametrize(
    "hostile",
    [
        msgspec.msgpack.encode(["Told", 1]),
        msgspec.msgpack.encode(["Told", "one", {"type": "text", "text": "x"}]),
        msgspec.msgpack.encode(["Told", 1, {"type": "nope"}]),
        msgspec.msgpack.encode(["Exec", "rm"]),
        msgspec.msgpack.encode(["Opened", 2**63 * 1.0, True, None]),
        msgspec.msgpack.encode(["Need", 1, -1, True]),
        msgspec.msgpack.encode(["Returned", -1]),
        b"\xdd\xff\xff\xff\xff",  # an array that says it has 4 billion entries
        b"\x91" * 100_000,
        b"\x93\xa4Told\x01\x82\xa4type\xa4text\xa4text\xa1\xff",  # no UTF-8
        b"",
    ],
    ids=range(11),
)
def test_hostile_messages_are_refused(hostile: bytes) -> None:
    with pytest.raises(WireError):
        decode_from_child(hostile)


@given(st.binary(max_size=64))
def test_a_splitter_never_returns_more_than_it_was_given(data: bytes) -> None:
    try:
        found = FrameSplitter().push(data)
    except WireError:
        assert struct.unpack_from(">I", data)[0] > 0
    else:
        assert sum(len(one) + 4 for one in found) <= len(data)


def samples() -> list[GatewayError]:
    found: list[GatewayError] = [
        ModelNotFound("x", ["y"]),
        AmbiguousModel("x", ["a/x", "b/x"]),
        errors.Misconfigured(["one", "two"]),
        errors.ProviderTimeout("p", "Slow.", retry_after_s=2.0),
    ]
    for _, kind in inspect.getmembers(errors, inspect.isclass):
        if issubclass(kind, GatewayError) and "__init__" not in vars(kind):
            if issubclass(kind, errors.ProviderError):
                found.append(kind("p", "m", hint="h"))
            else:
                found.append(kind("m", hint="h", param="p", retry_after_s=1.0))
    return found


@pytest.mark.parametrize("error", samples(), ids=lambda error: type(error).__name__)
def test_an_error_is_the_same_on_the_other_side(error: GatewayError) -> None:
    message = decode_from_child(payload(encode_frame(Released(1, to_fault(error)))))
    assert isinstance(message, Released) and message.fault is not None
    there = to_error(message.fault)
    assert type(there) is type(error)
    assert str(there) == str(error)
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(error).items()}
    assert vars(there) == plain


def test_an_error_of_a_class_that_only_the_engine_knows_is_what_it_is_a_kind_of() -> None:
    class CacheFull(NoRoom):
        pass

    assert type(to_error(to_fault(CacheFull("No.")))) is NoRoom


@pytest.mark.parametrize(
    "fault",
    [
        Fault("SystemExit", {"message": "m"}),
        Fault("Sequence", {"message": "m"}),
        Fault("__name__", {"message": "m"}),
        Fault("NoRoom", {}),
        Fault("NoRoom", {"message": 5}),
    ],
)
def test_what_is_no_error_of_ours_becomes_internal(fault: Fault) -> None:
    assert type(to_error(fault)) is Internal
