"""What is known of a name is what would be planned for it, each time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.catalogue import Catalogue
from gateway.core.embeddings import EmbedRequest
from gateway.core.known_plans import MAX_PLANS, KnownPlans
from gateway.core.messages import GenerateRequest, ImagePart, Message, Tool
from gateway.core.models import Capability, ModelInfo
from gateway.core.names import ModelRef
from gateway.core.plan import Plan, plan_routes
from gateway.core.rotation import PREFIX
from gateway.core.states import ModelState
from gateway.core.virtual import Candidate, VirtualModel

CHAT = (Capability.CHAT,)
SMALL = ModelInfo(ModelRef("ollama", "small:latest"), capabilities=CHAT)
EYES = ModelInfo(ModelRef("ollama", "eyes:latest"), capabilities=(*CHAT, Capability.VISION))
VECTORS = ModelInfo(ModelRef("huggingface", "vectors"), capabilities=(Capability.EMBEDDING,))
UNKNOWN = ModelInfo(ModelRef("huggingface", "unknown"))
MODELS = (SMALL, EYES, VECTORS, UNKNOWN)
LISTED = [model.id for model in MODELS]
ROTATION = PREFIX + "turns"

Asked = GenerateRequest | EmbedRequest


def ask(name: str, **fields: object) -> GenerateRequest:
    return GenerateRequest(id="r", model=name, **fields)  # type: ignore[arg-type]


def plan(
    request: Asked,
    catalogue: Catalogue,
    aliases: dict[str, str],
    rules: dict[str, VirtualModel],
) -> Plan:
    return plan_routes(
        request,
        providers=("huggingface", "ollama"),
        catalogue=catalogue,
        aliases=aliases,
        rules=rules,
        draw=lambda: 0.0,
    )


names = st.sampled_from([*LISTED, "small", "OLLAMA/small", "ollama/small", "nobody/has it", ""])
needs = st.sampled_from(
    [
        {},
        {"messages": (Message("user", (ImagePart(b"png"),)),)},
        {"tools": (Tool("look"),)},
        {"think": True},
    ]
)
requests = st.one_of(
    st.builds(lambda name, fields: ask(name, **fields), names, needs),
    st.builds(lambda name: EmbedRequest(id="r", model=name, inputs=("a",)), names),
)
moves = st.one_of(
    requests,
    st.sets(st.sampled_from(MODELS)).map(lambda models: Catalogue(sorted(models, key=str))),
    st.tuples(st.just("alias"), names, st.sampled_from([*LISTED, ROTATION])),
    st.tuples(st.just("rule"), names, st.sampled_from(LISTED)),
    st.tuples(st.just("clear"), st.just(""), st.just("")),
)


@given(st.lists(moves, max_size=30))
def test_whatever_happened_before_a_known_plan_is_the_one_that_would_be_made(
    moves: list[Asked | Catalogue | tuple[str, str, str]],
) -> None:
    catalogue = Catalogue(MODELS)
    aliases: dict[str, str] = {}
    rules = {ROTATION: VirtualModel(ROTATION, (Candidate(SMALL.id),))}
    known = KnownPlans(aliases=aliases, rules=rules)
    for move in moves:
        match move:
            case Catalogue():
                catalogue = move
            case ("alias", name, target):
                aliases[name] = target
            case ("rule", name, target):
                rules[name] = VirtualModel(name, (Candidate(target),))
            case ("clear", _, _):
                aliases.clear()
            case GenerateRequest() | EmbedRequest():
                found = known.find(move, catalogue)
                made = plan(move, catalogue, aliases, rules)
                assert found is None or found == made
                known.keep(made, catalogue)


def know(name: str, catalogue: Catalogue, known: KnownPlans) -> Plan:
    made = plan(ask(name), catalogue, {}, {})
    known.keep(made, catalogue)
    return made


@pytest.mark.parametrize("name", [SMALL.id, "ollama/small", "ollama/SMALL", "small", "unknown", ""])
def test_a_plan_is_made_once_for_a_catalogue_and_an_error_each_time(name: str) -> None:
    known, catalogue = KnownPlans(aliases=(), rules=()), Catalogue(MODELS)
    assert known.find(ask(name), catalogue) is None
    made = know(name, catalogue, known)
    assert (known.find(ask(name), catalogue) is made) == bool(made.routes)
    loaded = ModelInfo(SMALL.ref, ModelState.LOADED, capabilities=CHAT)
    assert known.find(ask(name), Catalogue([loaded])) is None


def test_what_a_request_needs_is_looked_at_each_time() -> None:
    known, catalogue = KnownPlans(aliases=(), rules=()), Catalogue(MODELS)
    made = know(SMALL.id, catalogue, known)
    assert known.find(ask(SMALL.id, tools=(Tool("look"),)), catalogue) is None
    assert known.find(EmbedRequest(id="r", model=VECTORS.id, inputs=("a",)), catalogue) is None
    assert known.find(ask(SMALL.id), catalogue) is made


def test_a_name_that_became_a_rule_or_an_alias_is_not_the_listed_model_any_more() -> None:
    aliases: dict[str, str] = {}
    rules: dict[str, VirtualModel] = {}
    known, catalogue = KnownPlans(aliases=aliases, rules=rules), Catalogue(MODELS)
    for name in (SMALL.id, EYES.id):
        know(name, catalogue, known)
        assert known.find(ask(name), catalogue) is not None
    aliases[SMALL.id] = EYES.id
    assert known.find(ask(SMALL.id), catalogue) is None
    assert known.find(ask(EYES.id), catalogue) is not None
    rules[EYES.id] = VirtualModel(EYES.id, (Candidate(SMALL.id),))
    assert known.find(ask(EYES.id), catalogue) is None


def test_what_nobody_lists_is_not_known_and_spellings_are_bounded() -> None:
    known, catalogue = KnownPlans(aliases=(), rules=()), Catalogue(MODELS)
    assert know("ollama/any", catalogue, known).routes
    assert known.find(ask("ollama/any"), catalogue) is None
    for number in range(MAX_PLANS + 1):
        spelled = "".join(
            letter.upper() if number >> place & 1 else letter
            for place, letter in enumerate("latestsmall")
        )
        name = f"ollama/{spelled[6:]}:{spelled[:6]}"
        know(name, catalogue, known)
        assert known.find(ask(name), catalogue) is not None
    assert known.find(ask(SMALL.id), catalogue) is None
