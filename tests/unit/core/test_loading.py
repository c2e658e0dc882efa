import msgspec
import pytest

from gateway.core.errors import ModelLoadFailed, ModelNotFound
from gateway.core.eviction import is_worth_waiting
from gateway.core.loading import (
    ConfigChange,
    LoadConfig,
    LoadPlan,
    ModelConfig,
    estimate_bytes,
    estimate_eta,
)
from gateway.core.messages import Options
from gateway.core.models import Resident
from gateway.core.names import ModelRef

REF = ModelRef("huggingface", "m")


def test_a_change_replaces_the_parts_that_it_has_and_leaves_the_others() -> None:
    config = ModelConfig(LoadConfig(device="cpu"), Options(top_k=3), keep_alive_s=5, pinned=True)
    assert ConfigChange().of(config) == config
    changed = ConfigChange(defaults=Options(seed=1), keep_alive_s=None).of(config)
    assert changed == ModelConfig(config.load, Options(seed=1), keep_alive_s=None, pinned=True)
    assert ConfigChange(load=LoadConfig(), pinned=False).of(config).load == LoadConfig()


def test_what_a_request_says_goes_before_the_defaults() -> None:
    defaults = Options(temperature=0.5, max_tokens=7, stop=("x",))
    asked = Options(temperature=0.0, top_k=0)
    assert asked.over(defaults) == Options(temperature=0.0, top_k=0, max_tokens=7, stop=("x",))
    assert asked.over(Options()) == asked


@pytest.mark.parametrize(
    ("stored", "wanted", "expected"),
    [
        ("bfloat16", "float32", 200),
        ("float32", "float16", 50),
        ("float32", "auto", 100),
        (None, "float32", 100),
        ("float8_e4m3fn", "float32", 100),
    ],
)
def test_another_dtype_takes_as_many_bytes_as_its_numbers_are_wide(
    stored: str | None, wanted: str, expected: int
) -> None:
    assert estimate_bytes(100, stored, wanted) == expected  # type: ignore[arg-type]


def test_the_end_of_a_load_is_told_by_the_last_one_or_by_what_is_read() -> None:
    assert estimate_eta(3, 0.5, 10) == 7
    assert estimate_eta(30, 0.5, 10) == 0
    assert estimate_eta(3, 0.25, None) == 9
    assert estimate_eta(3, None, None) is None


def test_only_a_plan_that_knows_both_numbers_can_say_that_a_model_is_too_large() -> None:
    assert LoadPlan(REF, need_bytes=11, budget_bytes=10).is_too_large
    assert not LoadPlan(REF, need_bytes=10, budget_bytes=10).is_too_large
    assert not LoadPlan(REF, need_bytes=10).is_too_large


def test_models_in_use_are_worth_waiting_for_and_pinned_ones_are_not() -> None:
    busy = Resident(REF, 10, leases=1)
    pinned = Resident(REF, 10, pinned=True)
    assert is_worth_waiting([busy, pinned], need_bytes=15, free_bytes=5, need_slots=1)
    assert not is_worth_waiting([busy, pinned], need_bytes=16, free_bytes=5)
    assert not is_worth_waiting([pinned], need_bytes=0, free_bytes=5, need_slots=1)


def test_an_error_that_is_raised_again_is_the_same_without_its_past() -> None:
    for error in (ModelNotFound("a", ["b"]), ModelLoadFailed("no", hint="h", param="p")):
        try:
            raise error from ValueError("x")
        except (ModelNotFound, ModelLoadFailed) as caught:
            again = caught.renewed()
        assert type(again) is type(error) and str(again) == str(error)
        assert again.__dict__ == error.__dict__
        assert (again.__traceback__, again.__cause__, again.__context__) == (None, None, None)


def test_a_device_is_one_that_there_can_be() -> None:
    for device in ("auto", "cpu", "cuda", "cuda:0", "mps"):
        assert msgspec.convert({"device": device}, LoadConfig).device == device
    for device in ("cuda:", "gpu", "cpu\n", "disk"):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert({"device": device}, LoadConfig)
