from starlette.datastructures import Headers

from gateway.http.caller import identify_stranger


def stranger(**headers: str) -> str:
    given = Headers({name.replace("_", "-"): value for name, value in headers.items()})
    return identify_stranger(given.items()).id


def test_one_credential_is_one_caller_in_both_ways_of_sending_it() -> None:
    assert stranger(authorization="Bearer sk-1") == stranger(x_api_key="sk-1")
    assert stranger(authorization="bearer  sk-1") == stranger(x_api_key="sk-1")
    assert stranger(x_api_key="sk-1") != stranger(x_api_key="sk-2")


def test_without_a_credential_nobody_is_told_apart() -> None:
    assert stranger() == stranger(authorization="Bearer ") == stranger(authorization="Basic x")
    assert stranger() == ""


def test_the_name_does_not_tell_the_credential() -> None:
    assert "sk-secret" not in stranger(x_api_key="sk-secret")
