import pytest

from gateway.core.catalogue import Catalogue
from gateway.core.embeddings import EmbedRequest
from gateway.core.errors import ModelNotFound, UnsupportedCapability
from gateway.core.messages import GenerateRequest, ImagePart, Message, ResponseFormat, Tool
from gateway.core.models import Capability, ModelFilter, ModelInfo, select_models
from gateway.core.names import ModelRef
from gateway.core.plan import plan_routes
from gateway.core.states import ModelState

CHAT = (Capability.CHAT, Capability.COMPLETION)
DEMO = ModelInfo(ModelRef("huggingface", "demo"), capabilities=CHAT)
LLAVA = ModelInfo(
    ModelRef("ollama", "llava:latest"),
    state=ModelState.LOADED,
    capabilities=(*CHAT, Capability.VISION),
    metadata=(("family", "Clip"),),
)
EMBED = ModelInfo(ModelRef("ollama", "embed:latest"), capabilities=(Capability.EMBEDDING,))
CATALOGUE = [DEMO, LLAVA, EMBED]


def route(request: GenerateRequest | EmbedRequest, **fields: object) -> ModelRef:
    settings = {
        "providers": ("huggingface", "ollama"),
        "catalogue": Catalogue(CATALOGUE),
        "aliases": {"eyes": "ollama/llava"},
        "rules": {},
        **fields,
    }
    plan = plan_routes(request, draw=lambda: 0.0, **settings)  # type: ignore[arg-type]
    if plan.error is not None:
        raise plan.error
    return plan.routes[0].ref


def ask(model: str, **rest: object) -> GenerateRequest:
    return GenerateRequest(id="r", model=model, **{"messages": (Message.user("hi"),), **rest})  # type: ignore[arg-type]


def test_an_alias_leads_to_its_model() -> None:
    assert route(ask("eyes")) == LLAVA.ref


def test_the_catalogue_s_spelling_of_an_ollama_name_wins() -> None:
    assert route(ask("ollama/LLaVA")) == LLAVA.ref


def test_images_go_to_a_model_that_sees_and_to_no_other() -> None:
    message = Message("user", (ImagePart(b"png"),))
    assert route(ask("llava", messages=(message,))) == LLAVA.ref
    with pytest.raises(UnsupportedCapability, match="images"):
        route(ask("demo", messages=(message,)))


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        ({"tools": (Tool("f"),)}, "tools"),
        ({"think": True}, "thinking"),
        ({"response_format": ResponseFormat("json_object")}, "structured"),
    ],
)
def test_what_a_model_cannot_do_is_said(asked: dict[str, object], word: str) -> None:
    with pytest.raises(UnsupportedCapability, match=word):
        route(ask("huggingface/demo", **asked))


def test_a_pinned_revision_can_do_no_more_than_its_model() -> None:
    with pytest.raises(UnsupportedCapability, match="tools"):
        route(ask("huggingface/demo@main", tools=(Tool("f"),)))
    assert route(ask("huggingface/demo@main")) == ModelRef("huggingface", "demo", "main")


def test_thinking_switched_off_needs_nothing() -> None:
    assert route(ask("huggingface/demo", think=False)) == DEMO.ref


def test_an_embedding_model_does_not_chat() -> None:
    with pytest.raises(UnsupportedCapability, match="does not generate text"):
        route(ask("ollama/embed"))


def test_a_model_outside_the_catalogue_is_left_to_its_provider() -> None:
    assert route(ask("ollama/new", think=True)) == ModelRef("ollama", "new:latest")


def test_a_name_nobody_has_lists_the_nearest() -> None:
    with pytest.raises(ModelNotFound) as caught:
        route(ask("dema"), providers=("huggingface",))
    assert caught.value.nearest == ("huggingface/demo",)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (ModelFilter(), [DEMO, LLAVA, EMBED]),
        (ModelFilter(providers=frozenset({"huggingface"})), [DEMO]),
        (ModelFilter(states=frozenset({ModelState.LOADED})), [LLAVA]),
        (ModelFilter(capabilities=frozenset({Capability.CHAT})), [DEMO, LLAVA]),
        (ModelFilter(capabilities=frozenset({Capability.CHAT, Capability.VISION})), [LLAVA]),
        (ModelFilter(text=" CLIP "), [LLAVA]),
        (ModelFilter(text="ollama/"), [LLAVA, EMBED]),
        (ModelFilter(text="nothing"), []),
    ],
)
def test_a_filter_keeps_what_matches_every_part(
    wanted: ModelFilter, found: list[ModelInfo]
) -> None:
    assert select_models(CATALOGUE, wanted) == found


def embed(model: str) -> EmbedRequest:
    return EmbedRequest("r", model, ("hi",))


def test_a_model_that_does_not_embed_is_refused_unless_ollama_shall_say_so() -> None:
    with pytest.raises(UnsupportedCapability, match="huggingface/demo does not make embeddings"):
        route(embed("demo"))
    assert route(embed("ollama/llava")) == LLAVA.ref
    assert route(embed("embed")) == EMBED.ref
