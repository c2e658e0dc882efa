"""The demo grammar: the same chats for the same seed, and answers that fit their questions."""

import subprocess
import sys
from itertools import islice, pairwise

import pytest

from gateway.demo.grammar import (
    answers,
    corpus_digest,
    dialogues,
    fallbacks,
    is_answer,
    paraphrases,
    questions,
)


def test_the_same_seed_gives_the_same_chats() -> None:
    assert list(islice(dialogues(7), 50)) == list(islice(dialogues(7), 50))
    assert corpus_digest(7, 50) == corpus_digest(7, 50)


def test_another_seed_gives_other_chats() -> None:
    assert corpus_digest(7, 50) != corpus_digest(8, 50)


def test_chats_do_not_depend_on_the_hash_seed_of_the_process() -> None:
    code = "import sys, gateway.demo.grammar as g; sys.stdout.write(g.corpus_digest(3, 99))"
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(filter(None, sys.path))},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert digests == {corpus_digest(3, 99)}


def test_the_grammar_needs_no_machine_learning_library() -> None:
    code = "import sys, gateway.demo.grammar; sys.exit('torch' in sys.modules)"
    env = {"PYTHONPATH": ":".join(filter(None, sys.path))}
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == 0


def test_a_chat_alternates_between_user_and_assistant_after_an_optional_system_prompt() -> None:
    chats = list(islice(dialogues(1), 300))
    for chat in chats:
        roles = [turn.role for turn in chat]
        if roles[0] == "system":
            roles = roles[1:]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
    assert {chat[0].role for chat in chats} == {"system", "user"}
    assert any(len(chat) > 4 for chat in chats)


def test_each_reply_in_a_chat_is_an_answer_to_the_question_before_it() -> None:
    for chat in islice(dialogues(2), 300):
        for asked, replied in pairwise(chat):
            if asked.role == "user":
                assert is_answer(asked.content, replied.content)


def test_the_canonical_questions_are_distinct_and_include_the_gateway() -> None:
    assert "What is a gateway?" in questions()
    assert len(set(questions())) == len(questions()) >= 60


@pytest.mark.parametrize("question", questions())
def test_every_wording_of_a_question_has_the_answers_of_the_question(question: str) -> None:
    assert answers(question) != fallbacks()
    for wording in paraphrases(question, seed=1, count=200):
        assert answers(wording) == answers(question), wording


@pytest.mark.parametrize("question", questions())
def test_answers_are_tidy_sentences(question: str) -> None:
    for answer in answers(question):
        assert answer == answer.strip()
        assert answer[0].isupper()
        assert answer[-1] in ".!?"
        assert "  " not in answer
        assert "\\" not in answer


def test_some_answers_are_long_enough_to_watch_them_stream() -> None:
    assert sum(len(answers(question)[0].split()) >= 25 for question in questions()) >= 12


def test_an_answer_to_another_question_is_refused() -> None:
    assert is_answer("What is tea?", answers("Tell me about tea.")[0])
    assert not is_answer("What is tea?", answers("What is a cat?")[0])
    assert not is_answer("What is tea?", fallbacks()[0])
    assert not is_answer("What is tea?", "")


@pytest.mark.parametrize(
    "question", ["what is a gateway", "WHAT IS A GATEWAY?!", "Hi, what is a gateway, please?"]
)
def test_case_marks_and_politeness_do_not_matter(question: str) -> None:
    assert answers(question) == answers("What is a gateway?")


@pytest.mark.parametrize("question", ["Who was Mozart?", "", "🙂", "你好"])
def test_the_right_answer_to_an_unknown_question_is_a_fallback(question: str) -> None:
    assert answers(question) == fallbacks()


def test_chats_contain_unknown_questions_too() -> None:
    replies = [turn.content for chat in islice(dialogues(3), 300) for turn in chat]
    assert set(fallbacks()) <= set(replies)


def test_paraphrases_of_an_unknown_question_are_refused() -> None:
    with pytest.raises(KeyError):
        paraphrases("Who was Mozart?", seed=1, count=1)
