"""Fixtures of the HTTP tests."""

import pytest

from tests.integration.clients import node


@pytest.fixture(scope="session")
def node_modules() -> None:
    """The npm packages of the conformance clients, installed once."""
    node.install()
