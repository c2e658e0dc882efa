from starlette.datastructures import Headers

from gateway.http.caller import identify_caller


def caller(**headers: str) -> str:
    return identify_caller(Headers({name.replace("_", "-"): v for name, v in headers.items()}))


def test_one_key_is_one_caller_in_both_ways_of_sending_it() -> None:
    assert caller(authorization="Bearer sk-1") == caller(x_api_key="sk-1")
    assert caller(authorization="bearer  sk-1") == caller(x_api_key="sk-1")
    assert caller(x_api_key="sk-1") != caller(x_api_key="sk-2")


def test_without_a_key_nobody_is_told_apart() -> None:
    assert caller() == caller(authorization="Bearer ") == caller(authorization="Basic x") == ""


def test_the_name_does_not_tell_the_key() -> None:
    assert "sk-secret" not in caller(x_api_key="sk-secret")
