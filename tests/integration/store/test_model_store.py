"""The contract of ModelStateStore, on every store."""

import pytest

from gateway.core.models import ModelStateChange
from gateway.core.names import ModelRef
from gateway.core.ports import ModelStateStore
from gateway.core.states import ModelState

NOW = 1_790_000_000.5


def change(
    model: str,
    state: ModelState = ModelState.LOADED,
    *,
    provider: str = "huggingface",
    revision: str | None = None,
    size_bytes: int | None = None,
    message: str | None = None,
) -> ModelStateChange:
    return ModelStateChange(ModelRef(provider, model, revision), state, size_bytes, message)


@pytest.mark.parametrize("state", ModelState)
async def test_a_state_reads_back_as_written(
    model_store: ModelStateStore, state: ModelState
) -> None:
    # More than a 32-bit column holds.
    written = change("org/big", state, revision="v1", size_bytes=140_000_000_000, message="why")
    await model_store.apply("a", [written], NOW)
    assert await model_store.all("a") == [written]


async def test_changes_are_applied_in_their_order(model_store: ModelStateStore) -> None:
    failed = change("m", ModelState.FAILED, message="no memory")
    steps = [change("m", ModelState.LOADING, size_bytes=5), failed]
    await model_store.apply("a", steps, NOW)
    assert await model_store.all("a") == [failed]


async def test_nothing_to_apply_is_harmless(model_store: ModelStateStore) -> None:
    await model_store.apply("a", [], NOW)
    assert await model_store.all("a") == []


async def test_a_revision_is_a_model_of_its_own(model_store: ModelStateStore) -> None:
    both = [change("m"), change("m", ModelState.FAILED, revision="v1")]
    await model_store.apply("a", both, NOW)
    assert await model_store.all("a") == both


async def test_an_at_sign_in_a_name_is_no_revision(model_store: ModelStateStore) -> None:
    both = [change("folder@v1", ModelState.LOADING), change("other", revision="v1")]
    await model_store.apply("a", both, NOW)
    assert await model_store.all("a") == both


async def test_nodes_do_not_see_each_other(model_store: ModelStateStore) -> None:
    await model_store.apply("a", [change("m")], NOW)
    await model_store.apply("b", [change("m", ModelState.FAILED)], NOW)
    await model_store.reconcile("b", "huggingface", [], NOW)
    assert await model_store.all("a") == [change("m")]
    assert await model_store.all("b") == []


async def test_models_are_sorted_the_same_everywhere(model_store: ModelStateStore) -> None:
    names = ["Zebra", "apple", "_x", "Äpfel", "10b", "9b"]
    await model_store.apply("a", [change(name) for name in names], NOW)
    assert [stored.ref.model for stored in await model_store.all("a")] == sorted(names)


async def test_reconciling_makes_one_provider_equal_to_the_truth(
    model_store: ModelStateStore,
) -> None:
    ollama = change("llama3:latest", provider="ollama")
    before = [change("kept"), change("gone"), change("kept", revision="gone"), ollama]
    await model_store.apply("a", before, NOW)
    truth = [change("kept", ModelState.NOT_LOADED), change("new", size_bytes=1)]
    drift = await model_store.reconcile("a", "huggingface", truth, NOW + 1)
    assert await model_store.all("a") == [*truth, ollama]
    # What is loaded on one side only, and nothing of files that came or of another provider.
    loaded, nothing = ModelState.LOADED, ModelState.NOT_LOADED
    assert {(str(each.ref), each.recorded, each.found) for each in drift} == {
        ("huggingface/kept", loaded, nothing),
        ("huggingface/gone", loaded, nothing),
        ("huggingface/kept@gone", loaded, nothing),
        ("huggingface/new", nothing, loaded),
    }
    assert not await model_store.reconcile("a", "huggingface", truth, NOW + 2)


async def test_files_that_come_and_go_are_no_drift(model_store: ModelStateStore) -> None:
    here = change("m", ModelState.NOT_LOADED)
    assert not await model_store.reconcile("a", "huggingface", [here], NOW)
    assert not await model_store.reconcile("a", "huggingface", [], NOW)


async def test_reconciling_with_nothing_removes_all_of_that_provider(
    model_store: ModelStateStore,
) -> None:
    await model_store.apply("a", [change("x"), change("y", provider="ollama")], NOW)
    await model_store.reconcile("a", "huggingface", [], NOW)
    assert await model_store.all("a") == [change("y", provider="ollama")]


async def test_a_truth_of_thousands_of_models_is_written(model_store: ModelStateStore) -> None:
    many = [change(f"m{number:05}") for number in range(3000)]
    await model_store.reconcile("a", "huggingface", many, NOW)
    await model_store.reconcile("a", "huggingface", many[:2], NOW)
    assert await model_store.all("a") == many[:2]


@pytest.mark.parametrize(
    ("message", "stored"),
    [
        ("bad \x00 byte", "bad \ufffd byte"),
        ("half \udc80 pair", "half \ufffd pair"),
        ("x" * 100_000, "x" * 3999 + "…"),
        ("Grüße 🦙 '; DROP TABLE models --", "Grüße 🦙 '; DROP TABLE models --"),
    ],
)
async def test_any_message_can_be_stored(
    model_store: ModelStateStore, message: str, stored: str
) -> None:
    await model_store.apply("a", [change("m", ModelState.FAILED, message=message)], NOW)
    assert await model_store.all("a") == [change("m", ModelState.FAILED, message=stored)]


async def test_an_absurd_size_does_not_fail_the_write(model_store: ModelStateStore) -> None:
    await model_store.apply("a", [change("m", size_bytes=10**30)], NOW)
    assert await model_store.all("a") == [change("m", size_bytes=2**63 - 1)]


async def test_the_longest_names_fit_the_key(model_store: ModelStateStore) -> None:
    longest = change("語" * 512, provider="語" * 64, revision="語" * 64)
    await model_store.apply("節" * 128, [longest], NOW)
    assert await model_store.all("節" * 128) == [longest]
