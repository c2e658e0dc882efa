import inspect

from gateway.core import errors
from gateway.problems import describe


def every_error() -> list[type[errors.GatewayError]]:
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
    return [
        kind
        for kind in kinds
        if issubclass(kind, errors.GatewayError) and kind is not errors.GatewayError
    ]


def make(kind: type[errors.GatewayError]) -> errors.GatewayError:
    names = list(inspect.signature(kind.__init__).parameters.values())[1:]
    needed = [p for p in names if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    return kind(*[["a"] if "Sequence" in str(p.annotation) else "some words" for p in needed])


def test_every_error_has_a_code_of_its_own_and_a_problem() -> None:
    codes = [kind.code for kind in every_error()]
    assert len(set(codes)) == len(codes) > 20
    for kind in every_error():
        problem = describe(make(kind))
        assert problem.code == kind.code
        assert 400 <= problem.status < 600
        assert problem.message


def test_what_may_be_retried_is_not_the_fault_of_the_request() -> None:
    for kind in every_error():
        problem = describe(make(kind))
        if problem.retryable:
            assert problem.status in (409, 429, 500, 502, 503, 504)


def test_an_unknown_exception_reveals_nothing() -> None:
    problem = describe(ValueError("password=hunter2"))
    assert problem.code == "internal"
    assert "hunter2" not in repr(problem)


def test_an_error_s_own_hint_and_delay_win() -> None:
    error = errors.Overloaded("full", hint="Go home.", retry_after_s=9)
    problem = describe(error)
    assert (problem.hint, problem.retry_after_s, problem.status) == ("Go home.", 9, 503)
