"""The shipped demo model: small and safe to load, and its answers are those of the grammar."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from gateway.demo import MODEL_PATH, train
from gateway.demo.grammar import (
    Turn,
    answers,
    corpus_digest,
    dialogues,
    fallbacks,
    is_answer,
    paraphrases,
    questions,
)

WEIGHTS = MODEL_PATH / "model.safetensors"
MEGABYTE = 1_000_000


class Demo(NamedTuple):
    model: Any
    tokenizer: Any

    def reply(self, chats: Sequence[Sequence[Turn]], batch: int = 33) -> list[str]:
        """Answer each chat greedily; fails if an answer is not ended by the model itself."""
        return [
            text
            for first in range(0, len(chats), batch)
            for text in self._reply(chats[first : first + batch])
        ]

    def _reply(self, chats: Sequence[Sequence[Turn]]) -> list[str]:
        prompts = [
            self.tokenizer.apply_chat_template(
                [turn._asdict() for turn in chat], tokenize=False, add_generation_prompt=True
            )
            for chat in chats
        ]
        inputs = self.tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
        with torch.inference_mode():
            output = self.model.generate(
                input_ids=inputs.input_ids, attention_mask=inputs.attention_mask
            )
        ids = output[:, inputs.input_ids.shape[1] :].tolist()
        assert all(self.tokenizer.eos_token_id in row for row in ids)
        return [self.tokenizer.decode(row, skip_special_tokens=True) for row in ids]


@pytest.fixture(scope="module")
def demo() -> Demo:
    return Demo(
        AutoModelForCausalLM.from_pretrained(MODEL_PATH, use_safetensors=True).eval(),
        AutoTokenizer.from_pretrained(MODEL_PATH),
    )


def ask(question: str) -> list[Turn]:
    return [Turn("user", question)]


def test_the_checkpoint_is_small_and_holds_nothing_but_safetensors(demo: Demo) -> None:
    assert WEIGHTS.stat().st_size < 4 * MEGABYTE
    assert 1_500_000 <= sum(p.numel() for p in demo.model.parameters()) <= 2_000_000
    assert {file.suffix for file in MODEL_PATH.iterdir()} <= {
        ".json",
        ".jinja",
        ".md",
        ".safetensors",
    }
    with safe_open(WEIGHTS, framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118


def test_the_embeddings_are_tied(demo: Demo) -> None:
    assert demo.model.lm_head.weight is demo.model.model.embed_tokens.weight


def test_every_canonical_question_gets_an_answer_of_the_grammar(demo: Demo) -> None:
    replies = demo.reply([ask(question) for question in questions()])
    wrong = {q: a for q, a in zip(questions(), replies, strict=True) if not is_answer(q, a)}
    assert wrong == {}


def test_nearly_every_paraphrase_gets_an_answer_of_the_grammar(demo: Demo) -> None:
    wordings = [text for q in questions() for text in paraphrases(q, seed=99, count=4)]
    replies = demo.reply([ask(text) for text in wordings])
    wrong = {q: a for q, a in zip(wordings, replies, strict=True) if not is_answer(q, a)}
    assert len(wrong) <= 0.05 * len(wordings), wrong


def test_the_second_turn_of_a_chat_is_answered(demo: Demo) -> None:
    asked = [*questions()[1:], questions()[0]]
    chats = [
        [
            Turn("system", "You are a helpful assistant."),
            *ask(first),
            Turn("assistant", answers(first)[0]),
            *ask(second),
        ]
        for first, second in zip(questions(), asked, strict=True)
    ]
    replies = demo.reply(chats)
    right = [is_answer(q, a) for q, a in zip(asked, replies, strict=True)]
    assert sum(right) >= 0.97 * len(asked)


def test_a_late_turn_of_a_long_chat_is_answered(demo: Demo) -> None:
    chat: list[Turn] = []
    for question in questions()[:8]:
        chat += [*ask(question), Turn("assistant", answers(question)[0])]
    assert is_answer("What is tea?", demo.reply([[*chat, *ask("What is tea?")]])[0])


def test_unknown_questions_are_mostly_answered_by_a_fallback(demo: Demo) -> None:
    unknown = [
        "What is a penguin?",
        "Who was Mozart?",
        "Tell me about pineapples.",
        "What is the capital of France?",
        "How do I cook rice?",
        "Who won the world cup in 1998?",
        "Translate cheese into German",
        "Where are my keys?",
        "How tall is Mount Everest?",
        "Why is the sky blue?",
        "你是谁",
        "🙂",
    ]
    replies = demo.reply([ask(question) for question in unknown])
    everything = {*fallbacks(), *(a for q in questions() for a in answers(q))}
    assert set(replies) <= everything
    assert sum(reply in fallbacks() for reply in replies) >= 10, replies


@pytest.mark.parametrize(
    "text", ["What is tea? 🙂🚀", "你好世界。", "naïve café — ½", "ไทย עברית", "a\n\tb  c\x00"]
)
def test_any_text_survives_the_tokenizer(demo: Demo, text: str) -> None:
    assert demo.tokenizer.decode(demo.tokenizer(text).input_ids) == text


def test_the_chat_template_writes_what_the_model_was_trained_on(demo: Demo) -> None:
    for chat in islice(dialogues(5), 20):
        rendered = demo.tokenizer.apply_chat_template(
            [turn._asdict() for turn in chat], tokenize=False
        )
        assert rendered == "".join(train.render(turn) for turn in chat)


def test_generation_stops_by_itself_and_is_greedy_by_default(demo: Demo) -> None:
    settings = demo.model.generation_config
    ends = demo.tokenizer.convert_tokens_to_ids([train.END, train.PAD])
    assert settings.eos_token_id == ends
    assert settings.pad_token_id == ends[1]
    assert not settings.do_sample
    assert demo.model.config.max_position_embeddings == 1024


def test_the_shipped_weights_belong_to_the_script_and_the_grammar() -> None:
    record = json.loads((MODEL_PATH / "training.json").read_text())
    recipe = train.Recipe()
    assert record["recipe"] == json.loads(json.dumps(asdict(recipe)))
    assert record["corpus_sha256"] == corpus_digest(recipe.seed, recipe.tokenizer_chats)
    digest = hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
    assert record["weights_sha256"] == digest
    assert digest in (MODEL_PATH / "README.md").read_text()


def test_training_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    recipe = train.Recipe(steps=3, tokenizer_chats=200)
    for name in ("one", "two"):
        train.build(tmp_path / name, recipe)
    files = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert files == sorted(file.name for file in (tmp_path / "two").iterdir())
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_training_leaves_the_callers_random_numbers_alone(tmp_path: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    train.build(tmp_path, train.Recipe(steps=1, tokenizer_chats=50))
    assert torch.equal(torch.rand(3), expected)
