"""Who may answer, in which order: by what is asked, by weight, by warmth and by health."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.catalogue import Catalogue
from gateway.core.errors import GatewayError, InvalidRequest, ModelNotFound, UnsupportedCapability
from gateway.core.messages import GenerateRequest, ImagePart, Message
from gateway.core.models import Capability, ModelInfo
from gateway.core.names import ModelRef
from gateway.core.plan import Health, Plan, plan_routes
from gateway.core.states import ModelState
from gateway.core.virtual import Candidate, Order, VirtualModel, VirtualModels, check_rules

CHAT = (Capability.CHAT,)
SMALL = ModelInfo(ModelRef("ollama", "small:latest"), capabilities=CHAT, context_length=100)
EYES = ModelInfo(ModelRef("ollama", "eyes:latest"), capabilities=(*CHAT, Capability.VISION))
WARM = ModelInfo(ModelRef("huggingface", "warm"), capabilities=CHAT, state=ModelState.LOADED)
CATALOGUE = Catalogue([SMALL, EYES, WARM])
PROVIDERS = ("huggingface", "ollama")
SIGHT = (Message("user", (ImagePart(b"png"),)),)


def plan(
    *models: str | Candidate,
    order: Order = "listed",
    health: Health | None = None,
    draw: float = 0.0,
    **asked: object,
) -> Plan:
    candidates = tuple(each if isinstance(each, Candidate) else Candidate(each) for each in models)
    fields = {"messages": (Message.user("hi"),), **asked}
    made = plan_routes(
        GenerateRequest(id="r", model="any", **fields),  # type: ignore[arg-type]
        providers=PROVIDERS,
        catalogue=CATALOGUE,
        aliases={"little": "ollama/small"},
        rules={"any": VirtualModel("any", candidates, order)},
        health=health or Health(),
        draw=lambda: draw,
    )
    if made.error is not None:
        assert not made.routes
        assert {each.verdict for each in made.considered} == {"skipped"}
        raise made.error
    return made


def order_of(plan: Plan) -> list[str]:
    return [route.ref.model.partition(":")[0] for route in plan.routes]


def test_candidates_are_asked_as_they_are_listed_and_may_be_aliases() -> None:
    made = plan("little", "warm", "ollama/eyes")
    assert order_of(made) == ["small", "warm", "eyes"]
    assert [each.verdict for each in made.considered] == ["chosen", "next", "next"]


def test_an_image_goes_to_those_that_see_and_the_others_are_said_to_be_skipped() -> None:
    made = plan("small", "eyes", "warm", messages=SIGHT)
    assert order_of(made) == ["eyes"]
    skipped = {each.model: each.reason for each in made.considered if each.verdict == "skipped"}
    assert set(skipped) == {"small", "warm"}
    assert "does not support images" in skipped["small"]


def test_a_prompt_that_is_surely_too_long_goes_to_a_longer_context() -> None:
    assert order_of(plan("small", "warm", messages=(Message.user("a" * 1000),))) == ["warm"]
    assert order_of(plan("small", "warm", messages=(Message.user("a" * 700),))) == ["small", "warm"]


def test_the_warm_one_is_asked_first_and_the_rest_as_listed() -> None:
    assert order_of(plan("small", "eyes", "warm", order="warm_first")) == ["warm", "small", "eyes"]


def test_who_is_not_well_is_asked_last() -> None:
    ill = Health(providers={"ollama": "Ollama is away."})
    made = plan("small", "warm", health=ill)
    assert order_of(made) == ["warm", "small"]
    assert made.considered[1].reason == "Ollama is away."
    ill = Health(models={WARM.ref: "It broke."})
    assert order_of(plan("warm", "small", health=ill)) == ["small", "warm"]


def test_when_nobody_is_well_the_first_is_asked_all_the_same() -> None:
    ill = Health(providers={"ollama": "Away.", "huggingface": "Away, too."})
    assert order_of(plan("small", "warm", health=ill)) == ["small", "warm"]


def test_lots_fall_by_weight() -> None:
    split = (Candidate("small", 1), Candidate("warm", 3), Candidate("eyes", 0))
    drawn = Counter(
        order_of(plan(*split, order="weighted", draw=step / 400))[0] for step in range(400)
    )
    assert drawn == {"small": 100, "warm": 300}


def test_a_candidate_that_nobody_has_is_skipped_and_none_at_all_is_an_error() -> None:
    hub_only = plan("nobody/here:at-all:x", "warm")
    assert order_of(hub_only) == ["warm"]
    with pytest.raises(UnsupportedCapability, match="None of 'any' can do this"):
        plan("small", "warm", messages=SIGHT)
    with pytest.raises(ModelNotFound):
        plan("a b c")


names = st.sampled_from(["small", "eyes", "warm", "gone::", "ollama/new", "little"])


@given(
    st.lists(st.builds(Candidate, names, st.floats(0, 9)), min_size=1, max_size=6),
    st.sampled_from(["listed", "weighted", "warm_first"]),
    st.floats(0, 1),
    st.sampled_from([(), SIGHT]),
    st.sets(st.sampled_from(["ollama", "huggingface"])),
)
def test_every_candidate_is_considered_once_and_the_well_come_first(
    candidates: list[Candidate],
    order: Order,
    draw: float,
    messages: tuple[Message, ...],
    away: set[str],
) -> None:
    health = Health(providers=dict.fromkeys(away, "Away."))
    asked = {"messages": messages or (Message.user("hi"),)}
    try:
        made = plan(*candidates, order=order, draw=draw, health=health, **asked)
    except GatewayError:
        return
    assert len(made.considered) == len(candidates)
    verdicts = [each.verdict for each in made.considered]
    assert verdicts == sorted(verdicts, key=["chosen", "next", "skipped"].index)
    assert verdicts.count("chosen") == 1
    assert len(made.routes) == len(candidates) - verdicts.count("skipped")
    wells = [route.ref.provider not in away for route in made.routes]
    assert wells == sorted(wells, reverse=True)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ([VirtualModel("a", ())], "needs 1 to"),
        ([VirtualModel("a", (Candidate("x"), Candidate("x")))], "twice"),
        ([VirtualModel("a", (Candidate("b"),)), VirtualModel("b", (Candidate("x"),))], "virtual"),
        ([VirtualModel("a", (Candidate("x", 0),))], "are 0"),
        ([VirtualModel("a", (Candidate("x", -1),))], "negative"),
        ([VirtualModel("ollama/a", (Candidate("x"),))], "already means"),
        ([VirtualModel("little", (Candidate("x"),))], "already means"),
    ],
)
def test_rules_that_can_never_work_are_refused(rules: list[VirtualModel], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        check_rules({rule.name: rule for rule in rules}, providers=PROVIDERS, aliases=("little",))


def test_each_candidate_says_why_it_has_its_place_for_programs_too() -> None:
    ill = Health(models={EYES.ref: "It broke."})
    made = plan("small", "eyes", "warm", order="warm_first", health=ill)
    codes = {each.model: each.code for each in made.considered}
    assert codes == {
        "huggingface/warm": "resident",
        "ollama/small:latest": "not_resident",
        "ollama/eyes:latest": "resting",
    }
    long = plan("small", "warm", messages=(Message.user("a" * 1000),))
    assert [each.code for each in long.considered] == ["first", "context_too_small"]
    drawn = plan("small", "warm", order="weighted", messages=(Message.user("hi"),))
    assert [each.code for each in drawn.considered] == ["weight", "able"]


def test_a_plan_keeps_nothing_of_how_its_error_came_about() -> None:
    """It is kept for long, and a traceback would keep the request with it."""
    made = plan_routes(
        GenerateRequest(id="r", model="nobody", messages=(Message.user("hi"),)),
        providers=PROVIDERS[:1],
        catalogue=CATALOGUE,
        aliases={},
        rules={},
        draw=lambda: 0.0,
    )
    assert made.error is not None
    assert made.error.__traceback__ is None


ROTATION = VirtualModel("rotation/r", (Candidate("ollama/eyes"), Candidate("warm")))


def plan_rotation(asked: str, *candidates: Candidate, order: Order = "listed") -> Plan:
    return plan_routes(
        GenerateRequest(id="r", model=asked, messages=(Message.user("hi"),)),
        providers=PROVIDERS,
        catalogue=CATALOGUE,
        aliases={"turns": "rotation/r"},
        rules={"any": VirtualModel("any", candidates, order), "rotation/r": ROTATION},
        draw=lambda: 0.5,
    )


def test_an_alias_of_a_rotation_means_all_of_it() -> None:
    by_name, by_alias = plan_rotation("rotation/r"), plan_rotation("turns")
    assert order_of(by_alias) == order_of(by_name) == ["eyes", "warm"]
    assert by_alias.rotation == by_name.rotation == "rotation/r"
    assert by_alias.asked == "turns"


@pytest.mark.parametrize("name", ["rotation/r", "turns"])
def test_a_rotation_among_candidates_is_the_one_that_answers_for_it_now(name: str) -> None:
    made = plan_rotation("any", Candidate("ollama/small"), Candidate(name))
    assert (order_of(made), made.rotation) == (["small", "eyes"], None)
    assert made.considered[1].reason.endswith("It answers for rotation/r now.")
    made = plan_rotation("any", Candidate(name), Candidate("ollama/small"))
    assert (order_of(made), made.rotation) == (["eyes", "small"], "rotation/r")


def test_a_rotation_s_model_that_is_a_candidate_itself_is_asked_once_and_has_both_shares() -> None:
    twice = Candidate("rotation/r", 1.0), Candidate("ollama/small", 2.0), Candidate("eyes", 3.0)
    made = plan_rotation("any", *twice, order="weighted")
    assert order_of(made) == ["eyes", "small"]  # the lot falls at half: 4 shares before 2
    assert [each.code for each in made.considered] == ["weight", "able", "duplicate"]


def test_a_rotation_that_is_not_there_is_no_model_of_the_hub() -> None:
    with pytest.raises(ModelNotFound, match="rotation/none"):
        plan("rotation/none")
    made = plan("rotation/none", "warm")
    assert (order_of(made), made.considered[1].code) == (["warm"], "model_not_found")


def test_an_alias_that_leads_back_to_its_rotation_is_passed_over() -> None:
    made = plan_routes(
        GenerateRequest(id="r", model="rotation/r", messages=(Message.user("hi"),)),
        providers=PROVIDERS,
        catalogue=CATALOGUE,
        aliases={"turns": "rotation/r"},
        rules={"rotation/r": VirtualModel("rotation/r", (Candidate("turns"), Candidate("warm")))},
        draw=lambda: 0.0,
    )
    assert order_of(made) == ["warm"]
    assert made.considered[-1].code == "model_not_found"


def test_of_virtual_models_the_first_source_counts() -> None:
    first, second = (VirtualModel("a", (Candidate(name),)) for name in ("x", "y"))
    models = VirtualModels({"a": first}, {"a": second, "b": second})
    assert models.get("a") is first
    assert models.get("b") is second
    assert models.get("c") is None
    assert models.get("c", second) is second
    assert ("a" in models, "b" in models, "c" in models) == (True, True, False)
    models.maps[1]["c"] = first
    assert models.get("c") is first
