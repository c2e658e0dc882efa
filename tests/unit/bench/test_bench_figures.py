import argparse
import math
from pathlib import Path

import pytest

from bench import bandwidth, engine
from bench.answers import Answer, Figures, Incomplete, check, describe, median, quantile
from bench.prompts import make_prompts, token_id, word


def whole_answer(*times_s: float) -> Answer:
    return Answer(list(times_s), prompt_tokens=3, completion_tokens=len(times_s))


def figures(tokens_per_s: float) -> Figures:
    return Figures(tokens_per_s, ttft_p50_s=1, ttft_p95_s=1, gap_p99_s=1, peak_bytes=1)


def test_a_quantile_is_a_value_that_was_measured() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [quantile(values, share) for share in (0.5, 0.95, 0.99)] == [3.0, 5.0, 5.0]
    assert math.isnan(quantile([], 0.5))


def test_tokens_a_second_are_those_of_all_streams_until_the_last_ends() -> None:
    found = describe([whole_answer(1.0, 2.0), whole_answer(2.0, 4.0)], peak_bytes=7)
    assert found == Figures(
        tokens_per_s=1.0, ttft_p50_s=1.0, ttft_p95_s=2.0, gap_p99_s=2.0, peak_bytes=7
    )


def test_the_median_is_of_each_figure() -> None:
    assert median([figures(1), figures(9), figures(2)]).tokens_per_s == 2


@pytest.mark.parametrize(
    "answer",
    [
        Answer([1.0], prompt_tokens=3, completion_tokens=1),
        Answer([1.0, 2.0], prompt_tokens=2, completion_tokens=2),
        Answer([], prompt_tokens=3, completion_tokens=2),
    ],
    ids=["a token lacks", "a token of the prompt lacks", "nothing was seen"],
)
def test_an_answer_that_is_not_whole_is_no_figure(answer: Answer) -> None:
    prompts = make_prompts(1, 3, seed=1)
    check([whole_answer(1.0, 2.0)], prompts, 2)
    with pytest.raises(Incomplete):
        check([answer], prompts, 2)


def test_prompts_have_their_length_in_words_that_are_tokens() -> None:
    first, second = make_prompts(2, 20, seed=1)
    assert len(first.split()) == 20
    assert first != second
    assert first.split()[:2] != make_prompts(1, 20, seed=2)[0].split()[:2]
    assert [token_id(word(index)) for index in (0, 25, 26, 151935)] == [0, 25, 26, 151935]


def test_who_was_cut_off_is_in_the_table() -> None:
    cell = engine.Cell("135m", 16, 128)
    results = {
        ("gateway", cell): engine.Measured(rounds=[figures(30)]),
        ("serve", cell): engine.Measured(failure="cut off after 45 s"),
        ("serve-cb", cell): engine.Measured(rounds=[figures(10)]),
    }
    shown = engine.report(results, [cell], ["gateway", "serve", "serve-cb"], new_tokens=64)
    assert "cut off after 45 s" in shown
    assert "3.00x" in shown


def test_an_unknown_peer_is_said_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        engine.parse(["--peers", "gateway,vllm"])
    assert "vllm is none of" in capsys.readouterr().err


def test_on_a_gpu_only_peers_that_have_a_form_for_it_are_asked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "llama.cpp" in engine.parse([]).peers
    on_gpu = engine.parse(["--device", "cuda"]).peers
    assert "gateway" in on_gpu
    assert "llama.cpp" not in on_gpu
    with pytest.raises(SystemExit):
        engine.parse(["--device", "cuda", "--peers", "gateway,llama.cpp"])
    assert "there is no llama.cpp" in capsys.readouterr().err


def test_what_one_stream_has_of_the_limit_counts_from_its_first_token() -> None:
    # 11 tokens in 3 s, the first after 1 s: 5 a second, of 20 that the memory could read.
    found = Figures(tokens_per_s=11 / 3, ttft_p50_s=1, ttft_p95_s=1, gap_p99_s=1, peak_bytes=1)
    assert bandwidth.share_of_limit(found, 11, 100, 2000) == pytest.approx(0.25)


def test_the_limit_is_said_of_one_stream_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "DATA", tmp_path)
    folder = tmp_path / "models" / "135m"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(1000))
    results = {
        ("gateway", engine.Cell("135m", 1, 128)): engine.Measured(rounds=[figures(5)]),
        ("gateway", engine.Cell("135m", 4, 512)): engine.Measured(rounds=[figures(5)]),
        ("serve", engine.Cell("135m", 1, 128)): engine.Measured(failure="cut off after 45 s"),
    }
    shown = engine.report_limit(results, "cuda", new_tokens=11, bytes_per_s=50_000.0)
    # 10 tokens in 1.2 s read 8,333 bytes a second.
    assert "17%" in shown
    assert shown.count("SmolLM2-135M") == 1


def test_the_core_is_measured_unless_loads_are_asked_for() -> None:
    assert engine.choose_cells(engine.parse([])) == list(engine.CORE)
    asked: argparse.Namespace = engine.parse(["--streams", "2,3", "--prompts", "64"])
    assert engine.choose_cells(asked) == [engine.Cell("135m", 2, 64), engine.Cell("135m", 3, 64)]
