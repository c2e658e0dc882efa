"""The config of a model as GET writes it is one that PUT takes."""

import msgspec
import pytest

from gateway.core.loading import ConfigReport, LoadConfig, ModelConfig
from gateway.core.messages import Options
from gateway.core.names import ModelRef
from gateway.http.control import ConfigBody, describe_report, to_change

REF = ModelRef("huggingface", "own/m")
EVERY_OPTION = Options(
    temperature=0.0,
    top_p=0.9,
    top_k=0,
    min_p=0.0,
    repetition_penalty=1.1,
    frequency_penalty=-0.5,
    presence_penalty=0.0,
    seed=2**64 - 1,
    max_tokens=7,
    stop=("\n", "end"),
    stop_ids=(0, 5),
    logprobs=0,
    logit_bias=((0, -100.0), (17, 2.5)),
)


def read_back(config: ModelConfig) -> ModelConfig:
    """Return what a PUT of the config makes of one that was decided otherwise."""
    written = msgspec.json.encode(describe_report(ConfigReport(REF, config))["config"])
    change = to_change(msgspec.json.decode(written, type=ConfigBody))
    return change.of(ModelConfig(defaults=Options(top_k=3), keep_alive_s=9.0, pinned=True))


def test_every_option_is_tried() -> None:
    assert all(value not in (None, ()) for value in msgspec.structs.astuple(EVERY_OPTION))


@pytest.mark.parametrize("name", Options.__struct_fields__)
def test_each_option_is_read_back(name: str) -> None:
    options = Options(**{name: getattr(EVERY_OPTION, name)})
    assert read_back(ModelConfig(defaults=options)).defaults == options


@pytest.mark.parametrize("logprobs", [None, 0, 1, 20])
def test_the_number_of_log_probabilities_is_read_back(logprobs: int | None) -> None:
    options = Options(logprobs=logprobs)
    assert read_back(ModelConfig(defaults=options)).defaults == options


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(),
        ModelConfig(
            load=LoadConfig("cuda:1", "bfloat16", "int8", 512),
            defaults=EVERY_OPTION,
            keep_alive_s=-1.0,
            pinned=True,
        ),
    ],
)
def test_a_whole_config_is_read_back(config: ModelConfig) -> None:
    assert read_back(config) == config
