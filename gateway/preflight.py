"""What only the parts can tell about the settings: kinds of providers, the database, folders.

Looks, and makes the folders that the gateway writes to; starts nothing.
"""

import os
from importlib.util import find_spec
from pathlib import Path

from gateway import providers
from gateway.core.errors import Misconfigured, ModelLoadFailed
from gateway.engine.loading.loader import choose_device
from gateway.settings import Settings, environment_name
from gateway.store.database import parse_url


def find_mistakes(settings: Settings, *, with_devices: bool = False) -> list[str]:
    """Return a sentence for each setting that is well-formed and cannot work.

    `with_devices` looks for the device as well, where one is named: that imports torch.
    """
    return [
        *_provider_mistakes(settings),
        *_database_mistakes(settings),
        *_folder_mistakes("data_dir", settings.data_dir),
        *_folder_mistakes("journal_dir", settings.journal_dir),
        *_model_mistakes(settings.hf_model_path),
        *_traces_mistakes(settings.traces_endpoint),
        *(_device_mistakes(settings) if with_devices else []),
    ]


def _provider_mistakes(settings: Settings) -> list[str]:
    known = providers.known_kinds()
    unknown = [
        f"{environment_name('providers')}: there is no provider kind '{kind}'; "
        f"known are: {', '.join(known)}"
        for kind in settings.providers
        if kind not in known
    ]
    nameless = [
        f"{environment_name('providers')}: 'openai' is no provider by itself; servers that are "
        f"named in {environment_name('openai')} are there without being listed here"
        for kind in settings.providers
        if kind == "openai"
    ]
    misnamed = [
        f"{environment_name('openai')}: '{name}' is the name of another kind of provider"
        for name, kind in settings.provider_kinds.items()
        if name != kind and name in known
    ]
    return [*unknown, *nameless, *misnamed]


def _database_mistakes(settings: Settings) -> list[str]:
    try:
        parse_url(settings.resolved_database_url)
    except Misconfigured as error:
        return [f"{environment_name('database_url')}: {text}" for text in error.mistakes]
    return []


def _folder_mistakes(setting: str, folder: Path | None) -> list[str]:
    if folder is None:
        return []
    name = environment_name(setting)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return [f"{name}: the folder {folder} cannot be made: {error.strerror}"]
    if not os.access(folder, os.W_OK | os.X_OK):
        return [f"{name}: the folder {folder} cannot be written to"]
    return []


def _model_mistakes(folder: Path | None) -> list[str]:
    name = environment_name("hf_model_path")
    if folder is None or not folder.exists():
        return []  # it may come later: every listing looks anew
    if not folder.is_dir():
        return [f"{name}: {folder} is not a folder"]
    if (folder / "config.json").exists():
        return [f"{name}: {folder} is a model; give the folder that holds it: {folder.parent}"]
    return []


def _device_mistakes(settings: Settings) -> list[str]:
    if "huggingface" not in settings.providers or settings.hf_device in ("auto", "cpu"):
        return []
    try:
        choose_device(settings.hf_device)
    except ModelLoadFailed as error:
        return [f"{environment_name('hf_device')}: {error.message}"]
    return []


def _traces_mistakes(endpoint: str) -> list[str]:
    parts = ("opentelemetry", "opentelemetry.sdk", "opentelemetry.exporter")
    if not endpoint or all(map(find_spec, parts)):
        return []
    needed = "traces need OpenTelemetry: pip install 'model-gateway[traces]'"
    return [f"{environment_name('traces_endpoint')}: {needed}"]
