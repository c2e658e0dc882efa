"""Properties of the tree itself: the lock, the package, the names that nothing may shadow."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOCKED = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line
)


def test_torch_is_locked_to_the_one_build() -> None:
    assert LOCKED["torch"] == "2.13.0"


def test_every_dependency_is_in_the_lock() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {re.split(r"[\[<>=;~! ]", line)[0].lower().replace("_", "-") for line in wanted}
    assert names <= {name.lower().replace("_", "-") for name in LOCKED}


def test_no_package_shadows_our_schema() -> None:
    assert "schema" not in {name.lower() for name in LOCKED}


def test_the_lock_names_no_place_of_one_machine() -> None:
    text = (ROOT / "constraints.txt").read_text()
    assert "file:" not in text
    assert " @ " not in text
