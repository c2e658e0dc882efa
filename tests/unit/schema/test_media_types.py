"""schema.media: what the headers of real clients and of nobody mean."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schema.media import JSON, RESPONSE, choose_media_type, is_browser, is_form, is_json


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", JSON),
        ("*/*", JSON),
        ("application/*", JSON),
        (JSON, JSON),
        (RESPONSE, RESPONSE),
        ("Application/GraphQL-Response+JSON; charset=utf-8", RESPONSE),
        (f"{RESPONSE}, {JSON}", RESPONSE),
        (f"{JSON}, {RESPONSE}", RESPONSE),
        (f"{RESPONSE};q=0.5, {JSON}", JSON),
        (f"{RESPONSE};q=0.5, */*;q=0.1", RESPONSE),
        (f"{JSON}, */*;q=0.1", JSON),
        (f"{RESPONSE}, */*", RESPONSE),
        (f"*/*, {RESPONSE};q=0", JSON),
        (f"{JSON};q=0, */*", RESPONSE),
        (f"{JSON};q=0", None),
        (f"{JSON};q=much", None),
        ("text/html", None),
        ("text/event-stream", None),
        (",,;", None),
    ],
)
def test_the_type_is_the_one_wanted_most(accept: str, chosen: str | None) -> None:
    assert choose_media_type(accept) == chosen


@settings(deadline=None)
@given(st.text())
def test_any_header_is_read(accept: str) -> None:
    assert choose_media_type(accept) in (JSON, RESPONSE, None)
    assert is_browser(accept) in (True, False)
    assert is_json(accept) in (True, False)


@pytest.mark.parametrize(
    ("content_type", "is_right"),
    [
        ("application/json", True),
        ("Application/JSON; Charset=UTF-8", True),
        ('application/json; charset="utf-8"', True),
        ("application/json; charset=latin-1", False),
        ("application/json+x", False),
        ("text/plain; application/json", False),
        ("", False),
    ],
)
def test_a_body_is_json_in_utf_8(content_type: str, is_right: bool) -> None:
    assert is_json(content_type) is is_right


def test_what_a_page_may_send_unasked_is_a_form() -> None:
    assert is_form("text/plain;charset=UTF-8")
    assert is_form("multipart/form-data; boundary=x")
    assert not is_form("application/json")


def test_only_who_names_html_is_a_browser() -> None:
    assert is_browser("text/html,application/xhtml+xml,*/*;q=0.8")
    assert not is_browser("*/*")
    assert not is_browser("text/html;q=0, */*")
