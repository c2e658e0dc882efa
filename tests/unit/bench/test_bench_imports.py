"""Every bench can at least be started: what it takes from the gateway is there."""

import importlib
import pkgutil

import pytest

import bench

MODULES = [module.name for module in pkgutil.walk_packages(bench.__path__, "bench.")]


@pytest.mark.parametrize("name", MODULES)
def test_it_finds_what_it_imports(name: str) -> None:
    importlib.import_module(name)
