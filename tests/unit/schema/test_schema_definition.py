"""The schema as a whole: committed, in step with the core, and its vendored page untouched."""

import hashlib
import re
import subprocess
import sys
from enum import Enum
from pathlib import Path

import pytest

import schema
from gateway.core import models, states
from schema import types
from schema.sdl import SDL_FILE, render_sdl

GRAPHIQL = Path(schema.__file__).parent / "graphiql"


def test_the_committed_definition_is_that_of_the_code() -> None:
    assert SDL_FILE.read_text(encoding="utf-8") == render_sdl(), "run `python -m schema --write`"


def test_the_module_prints_the_definition() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "schema"],
        cwd=SDL_FILE.parents[1],
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert printed.stdout == render_sdl()


@pytest.mark.parametrize(
    ("shown", "core"),
    [
        (types.ModelState, states.ModelState),
        (types.Capability, models.Capability),
        (types.ProviderState, states.ProviderState),
        (types.StreamEnd, states.StreamEnd),
    ],
)
def test_enums_have_every_name_of_the_core(shown: type[Enum], core: type[Enum]) -> None:
    assert [member.name for member in shown] == [member.name for member in core]


def test_vendored_files_are_the_ones_that_their_table_tells() -> None:
    table = (GRAPHIQL / "README.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `([\w.-]+)` .*`([0-9a-f]{64})` \|$", table, flags=re.MULTILINE))
    found = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in GRAPHIQL.iterdir()
        if ".min." in file.name
    }
    assert len(found) == 4
    assert found == told


def test_vendored_files_bring_their_licences() -> None:
    licences = (GRAPHIQL / "LICENSES.txt").read_text(encoding="utf-8")
    for name in ("graphiql 3.9.0", "react 18.3.1", "react-dom 18.3.1", "codemirror", "Fira Code"):
        assert name in licences
