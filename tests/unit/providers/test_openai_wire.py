"""Requests as OpenAI-compatible servers take them, and what is learnt from their refusals."""

import base64
import json
from typing import Any

import pytest

from gateway.core.embeddings import EmbedRequest, unpack_vector
from gateway.core.errors import (
    GatewayError,
    InvalidRequest,
    InvalidText,
    ProviderProtocolError,
    UnsupportedCapability,
)
from gateway.core.messages import (
    GenerateRequest,
    ImagePart,
    Message,
    Options,
    ResponseFormat,
    Said,
    TextPart,
    Tool,
    ToolCall,
)
from gateway.core.names import ModelRef
from gateway.core.states import ModelState
from gateway.providers.openai_embed_wire import encode_embed, read_embeddings
from gateway.providers.openai_fault_wire import Faults
from gateway.providers.openai_listing_wire import list_literally, read_listing
from gateway.providers.openai_wire import CHAT, COMPLETIONS, Dialect, encode_request
from gateway.servers import Continuation

REF = ModelRef("lab", "m")
FAULTS = Faults("lab", ["http://lab/v1"])
PLAIN = Dialect(tells_usage=False)


def body(dialect: Dialect = PLAIN, **fields: Any) -> dict[str, Any]:
    """What is sent for a request, without the model and that it streams."""
    fields.setdefault("messages", (Message.user("Hello"),))
    route, data = encode_request(GenerateRequest(id="r", model="x", **fields), "m", dialect)
    sent: dict[str, Any] = json.loads(data)
    assert (sent.pop("model"), sent.pop("stream")) == ("m", True)
    assert route == (COMPLETIONS if fields.get("raw") else CHAT)
    return sent


def test_what_is_not_set_is_not_sent() -> None:
    assert body() == {"messages": [{"role": "user", "content": "Hello"}]}
    assert body(Dialect())["stream_options"] == {"include_usage": True}


SAID = Said(text="Hel", reasoning="Hm", tokens=3)
OPEN = {"role": "assistant", "content": "Hel", "reasoning_content": "Hm"}


@pytest.mark.parametrize(
    ("way", "message", "beside"),
    [
        ("assistant", OPEN, {}),
        ("prefix", OPEN | {"prefix": True}, {}),
        (
            "continue_final_message",
            OPEN,
            {"continue_final_message": True, "add_generation_prompt": False},
        ),
    ],
)
def test_an_answer_is_gone_on_with_as_the_server_is_told(
    way: Continuation, message: dict[str, Any], beside: dict[str, Any]
) -> None:
    request = GenerateRequest(
        id="r",
        model="x",
        messages=(Message.user("Hello"),),
        said=SAID,
        options=Options(max_tokens=10),
    )
    _, data = encode_request(request, "m", PLAIN, way)
    sent = json.loads(data)
    assert sent.pop("messages") == [{"role": "user", "content": "Hello"}, message]
    assert sent == {"model": "m", "stream": True, "max_tokens": 7} | beside


def test_a_prompt_that_is_continued_as_it_stands_goes_on_behind_what_was_said() -> None:
    assert body(messages=(), prompt="Once ", raw=True, said=SAID) == {"prompt": "Once Hel"}


def test_options_have_the_names_that_servers_know() -> None:
    options = Options(
        temperature=0.0,
        top_p=0.5,
        top_k=0,
        min_p=0.1,
        repetition_penalty=1.1,
        frequency_penalty=0.2,
        presence_penalty=0.3,
        seed=0,
        max_tokens=5,
        stop=("a",),
        stop_ids=(7,),
        logprobs=0,
        logit_bias=((3, -1.0),),
    )
    sent = body(options=options)
    del sent["messages"]
    assert sent == {
        "temperature": 0.0,
        "top_p": 0.5,
        "top_k": 0,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "repeat_penalty": 1.1,
        "frequency_penalty": 0.2,
        "presence_penalty": 0.3,
        "seed": 0,
        "max_tokens": 5,
        "stop": ["a"],
        "stop_token_ids": [7],
        "logprobs": True,
        "logit_bias": {"3": -1.0},
    }
    assert body(options=Options(logprobs=4))["top_logprobs"] == 4


def test_a_raw_prompt_is_a_completion_and_another_one_a_chat() -> None:
    sent = body(prompt="once", raw=True, messages=(), options=Options(logprobs=0))
    assert sent == {"prompt": "once", "logprobs": 0}
    assert body(prompt="once", messages=())["messages"] == [{"role": "user", "content": "once"}]


def test_a_conversation_with_a_call_and_its_result() -> None:
    call = ToolCall("a", "f", '{"x": 1}')
    messages = (
        Message("assistant", reasoning="hm", tool_calls=(call,)),
        Message("tool", (TextPart("2"),), tool_call_id="a", tool_name="f"),
        Message("tool", (TextPart("3"),), tool_name="g"),
    )
    function = {"name": "f", "arguments": '{"x": 1}'}
    assert body(messages=messages)["messages"] == [
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "hm",
            "tool_calls": [{"id": "a", "type": "function", "function": function}],
        },
        {"role": "tool", "content": "2", "tool_call_id": "a"},
        {"role": "tool", "content": "3", "name": "g"},
    ]


@pytest.mark.parametrize(
    "head, kind",
    [(b"\x89PNG\r\n", "png"), (b"\xff\xd8\xff", "jpeg"), (b"GIF89a", "gif"), (b"RIFFx", "webp")],
)
def test_images_are_data_urls(head: bytes, kind: str) -> None:
    message = Message("user", (TextPart("what?"), ImagePart(head)))
    text, image = body(messages=(message,))["messages"][0]["content"]
    assert text == {"type": "text", "text": "what?"}
    data = base64.b64encode(head).decode()
    assert image["image_url"] == {"url": f"data:image/{kind};base64,{data}"}


@pytest.mark.parametrize("choice, sent", [(None, None), ("required", "required"), ("none", "none")])
def test_tools(choice: str | None, sent: str | None) -> None:
    tools = (Tool("f", "does", {"type": "object"}), Tool("g"))
    found = body(tools=tools, tool_choice=choice, parallel_tool_calls=False)
    empty = {"type": "object", "properties": {}}
    assert [tool["function"] for tool in found["tools"]] == [
        {"name": "f", "description": "does", "parameters": {"type": "object"}},
        {"name": "g", "parameters": empty},
    ]
    assert found.get("tool_choice") == sent
    assert found["parallel_tool_calls"] is False


def test_one_tool_is_chosen_by_its_name() -> None:
    found = body(tools=(Tool("f"),), tool_choice="f")
    assert found["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert "parallel_tool_calls" not in found


def test_formats() -> None:
    assert "response_format" not in body(response_format=ResponseFormat("text"))
    assert body(response_format=ResponseFormat("json_object"))["response_format"] == {
        "type": "json_object"
    }
    schema = {"type": "object"}
    found = body(response_format=ResponseFormat("json_schema", schema))["response_format"]
    assert found["json_schema"]["schema"] == schema
    with pytest.raises(InvalidRequest):
        body(response_format=ResponseFormat("json_schema"))


def test_thinking_is_a_level_or_a_switch() -> None:
    assert body(think="low")["reasoning_effort"] == "low"
    switch = {"enable_thinking": False, "thinking": False}
    assert body(think=False)["chat_template_kwargs"] == switch


def test_a_lone_surrogate_has_no_form() -> None:
    with pytest.raises(InvalidText):
        body(messages=(Message.user("\ud800"),))


def test_a_refusal_teaches_what_to_leave_out_and_only_once() -> None:
    asked = Dialect().after("Unexpected fields in the request: {'stream_options'}")
    assert asked == Dialect(tells_usage=False)
    assert asked.after("stream_options") is None
    asked = Dialect().after("Use 'max_completion_tokens' instead.")
    assert asked is not None
    assert body(asked, options=Options(max_tokens=3))["max_completion_tokens"] == 3
    assert asked.after("max_completion_tokens") is None
    assert Dialect().after("encoding_format must be float") == Dialect(knows_base64=False)
    assert Dialect().after("top_k is not known") is None


def test_a_listing_tells_lengths_and_states_as_each_server_does() -> None:
    lines = [
        {"id": "Qwen/Q", "max_model_len": 4096, "owned_by": "vllm"},
        {"id": "/models/x.gguf", "meta": {"n_ctx_train": 8192, "size": 7}},
        {"id": "router", "status": {"value": "unloaded"}},
        {"id": "odd", "max_model_len": "long", "meta": 3, "status": "fine"},
        {"id": "open", "context_length": 10**30},
        {"id": "a\nb"},
        {"id": ""},
    ]
    data = json.dumps({"object": "list", "data": lines}).encode()
    found = {each.info.ref.model: each for each in read_listing(data, "lab", ())}
    assert {name: each.info.context_length for name, each in found.items()} == {
        "Qwen/Q": 4096,
        "models/x.gguf": 8192,
        "router": None,
        "odd": None,
        "open": None,
    }
    assert found["models/x.gguf"].id == "/models/x.gguf"
    assert found["models/x.gguf"].info.size_bytes == 7
    assert found["router"].info.state is ModelState.NOT_LOADED
    assert found["odd"].info.state is ModelState.LOADED
    assert [each.id for each in read_listing(data, "lab", ("Qwen/*",))] == ["Qwen/Q"]
    bare = json.dumps(lines).encode()
    assert len(read_listing(bare, "lab", ())) == 5


@pytest.mark.parametrize("data", [b"", b"3", b"{}", b'{"data":[{"id":3}]}', b"[" * 5000, b"\xff"])
def test_what_is_no_listing(data: bytes) -> None:
    with pytest.raises(ValueError):
        read_listing(data, "lab", ())


def test_named_models_stand_in_for_a_listing() -> None:
    assert [each.id for each in list_literally("lab", ["a/b", "c*", "d"])] == ["a/b", "d"]


def embed(*inputs: Any, **fields: Any) -> EmbedRequest:
    return EmbedRequest(id="r", model="x", inputs=inputs, **fields)


def test_embeddings_are_asked_for_in_base64_where_it_is_known() -> None:
    sent = json.loads(encode_embed(embed("a", (1, 2), dimensions=2), "m", Dialect()))
    assert sent == {"model": "m", "input": ["a", [1, 2]], "encoding_format": "base64"}
    plain = json.loads(encode_embed(embed("a"), "m", Dialect(knows_base64=False)))
    assert "encoding_format" not in plain
    with pytest.raises(UnsupportedCapability):
        encode_embed(embed("a", truncate=True), "m", Dialect())


PACKED = base64.b64encode(b"\x00\x00\x40\x40\x00\x00\x80\x40").decode()  # 3.0 and 4.0


@pytest.mark.parametrize("vector", [[3.0, 4.0], [3, 4], PACKED])
def test_vectors_are_numbers_or_base64_in_any_order(vector: Any) -> None:
    data = [{"index": 1, "embedding": [0.0, 1.0]}, {"index": 0, "embedding": vector}]
    answer = json.dumps({"data": data, "usage": {"prompt_tokens": 5}}).encode()
    found = read_embeddings(answer, embed("a", "b"), REF, FAULTS)
    assert [unpack_vector(each) for each in found.vectors] == [[3.0, 4.0], [0.0, 1.0]]
    assert found.usage.prompt_tokens == 5
    cut = read_embeddings(answer, embed("a", "b", dimensions=1), REF, FAULTS)
    assert [unpack_vector(each) for each in cut.vectors] == [[1.0], [0.0]]


@pytest.mark.parametrize(
    "vectors",
    [
        [[1.0]],
        [[1.0], [1.0, 2.0]],
        [[], []],
        [[1.0], ["x"]],
        [[1.0], "AAA"],
        [[1.0], "%%%%"],
        [[1.0], "AAAA"],
        [[1.0], "AADAfw=="],
        [[1.0], [1e39]],
        [[1.0], None],
    ],
)
def test_vectors_that_are_none(vectors: list[Any]) -> None:
    answer = json.dumps({"data": [{"embedding": vector} for vector in vectors]}).encode()
    with pytest.raises(ProviderProtocolError):
        read_embeddings(answer, embed("a", "b"), REF, FAULTS)


@pytest.mark.parametrize("index", [(0, 0), (1, 2), (0, None)])
def test_vectors_that_do_not_say_whose_they_are(index: tuple[Any, Any]) -> None:
    data = [{"index": each, "embedding": [1.0]} for each in index]
    with pytest.raises(GatewayError):
        read_embeddings(json.dumps({"data": data}).encode(), embed("a", "b"), REF, FAULTS)
