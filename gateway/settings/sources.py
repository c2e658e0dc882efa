"""Where settings come from: config/*.toml < .env < environment. The only reader of these."""

import os
import tomllib
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from dotenv import dotenv_values
from dotenv.parser import parse_stream
from pydantic import ValidationError

from gateway.core.errors import Misconfigured
from gateway.servers import ENVIRON
from gateway.settings.whole import Settings

PREFIX = "GATEWAY_"
CONFIG_DIR = PREFIX + "CONFIG_DIR"
RESERVED = frozenset({CONFIG_DIR})
OUR_PREFIXES = (PREFIX, "OLLAMA_", "HF_", "HUGGING_FACE_")
LIKENESS = 0.7
"""Of two names, 0 to 1, from which on one may be meant by the other."""
VENDOR_NAMES = {
    "ollama_host": "OLLAMA_HOST",
    "hf_model_path": "HF_MODEL_PATH",
    "hf_home": "HF_HOME",
    "hf_hub_cache": "HF_HUB_CACHE",
    "hf_token": "HF_TOKEN",
    "hf_hub_offline": "HF_HUB_OFFLINE",
}


def environment_name(setting: str) -> str:
    """Return the environment variable of a setting."""
    return VENDOR_NAMES.get(setting, PREFIX + setting.upper())


def load_settings(
    environ: Mapping[str, str] | None = None,
    *,
    config_dir: Path | None = None,
    dotenv: Path = Path(".env"),
    find_mistakes: Callable[["Settings"], list[str]] = lambda _: [],
) -> Settings:
    """Return the settings of this machine.

    Raises Misconfigured with every mistake at once: each names the setting and where it was set.
    What `find_mistakes` says of the settings that are right by themselves is among them.
    """
    sources = _Sources()
    environ = dict(os.environ if environ is None else environ)
    file_values = {k: v for k, v in dotenv_values(dotenv).items() if v is not None}
    named_dir = environ.get(CONFIG_DIR) or file_values.get(CONFIG_DIR)
    sources.check_dotenv(dotenv)
    if named_dir and not Path(named_dir).is_dir():
        sources.add_mistake(f"{CONFIG_DIR}: {named_dir} is not a folder")
    for file in _toml_files(config_dir or Path(named_dir or default_config_dir())):
        sources.add_toml(file)
    sources.add_environment(file_values, str(dotenv))
    sources.add_environment(environ, "the environment")
    return sources.validate(find_mistakes)


def child_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for our own children: without what configures the gateway.

    They are told what they need, and what they need not know are its secrets.
    """
    source = os.environ if environ is None else environ
    return {name: value for name, value in source.items() if not name.startswith(OUR_PREFIXES)}


def model_environment(settings: Settings) -> dict[str, str]:
    """Return the environment for processes that load models: besides, where code may be copied."""
    return child_environment() | {"HF_MODULES_CACHE": str(settings.resolved_modules_cache)}


def default_config_dir() -> Path:
    """Return `config/` of the source tree, or the copy inside the installed package."""
    package = Path(__file__).parents[1]
    packaged = package / "_config"
    return packaged if packaged.is_dir() else package.parent / "config"


class _Sources:
    """Values, where each came from, and the mistakes found on the way."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._labels: dict[str, str] = {}
        self._environ: dict[str, str] = {}
        self._mistakes: list[str] = []

    def add_toml(self, file: Path) -> None:
        try:
            values = tomllib.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            self._mistakes.append(f"{file}: it cannot be read as TOML: {error}")
            return
        for name, value in values.items():
            if name in Settings.model_fields:
                self._set(name, value, f"{name} in {file}")
            else:
                self._add_unknown(f"{name} in {file}", name, str)

    def add_environment(self, environ: Mapping[str, str], origin: str) -> None:
        self._environ |= environ
        by_name = {environment_name(setting): setting for setting in Settings.model_fields}
        for name, value in environ.items():
            if value == "":
                continue  # compose files pass unset variables as empty strings
            if name in by_name:
                self._set(by_name[name], value, f"{name} in {origin}")
            elif name.startswith(PREFIX) and name not in RESERVED:
                setting = name.removeprefix(PREFIX).lower()
                self._add_unknown(f"{name} in {origin}", setting, environment_name)

    def _add_unknown(self, label: str, name: str, spell: Callable[[str], str]) -> None:
        """Note a name that is no setting's, with the one that looks most like it."""
        nearest = get_close_matches(name, Settings.model_fields, n=1, cutoff=LIKENESS)
        guess = f"; did you mean {spell(nearest[0])}?" if nearest else ""
        self.add_mistake(f"{label}: there is no such setting{guess}")

    def add_mistake(self, mistake: str) -> None:
        self._mistakes.append(mistake)

    def check_dotenv(self, file: Path) -> None:
        """Take note of lines that mean nothing; the parser leaves them out."""
        if file.is_file():
            with file.open(encoding="utf-8", errors="replace") as stream:
                for binding in parse_stream(stream):
                    if binding.error:
                        self.add_mistake(f"{file}: line {binding.original.line} cannot be read")

    def validate(self, find_mistakes: Callable[[Settings], list[str]]) -> Settings:
        settings, wrong = self._try()
        if settings is None:
            # What is right by itself may still not work: that is said in the same breath.
            kept = {name: value for name, value in self._values.items() if name not in wrong}
            found = find_mistakes(self._build(kept))
            wrong_names = {environment_name(name) for name in wrong}
            self._mistakes += [text for text in found if text.partition(":")[0] not in wrong_names]
        else:
            self._mistakes += find_mistakes(settings)
        if settings is None or self._mistakes:
            raise Misconfigured(self._mistakes)
        return settings

    def _try(self) -> tuple[Settings | None, set[str]]:
        """Return the settings, or None and the names of the wrong ones; notes their mistakes."""
        try:
            return self._build(self._values), set()
        except ValidationError as error:
            wrong = set()
            for item in error.errors(include_url=False, include_input=False):
                name, *inner = map(str, item["loc"])
                label = self._labels.get(name, environment_name(name))
                place = f" (at {'.'.join(inner)})" if inner else ""
                message = item["msg"].removeprefix("Value error, ")
                self.add_mistake(f"{label}{place}: {message}")
                wrong.add(name)
            return None, wrong

    def _build(self, values: dict[str, Any]) -> Settings:
        return Settings.model_validate(values, context={ENVIRON: self._environ})

    def _set(self, name: str, value: Any, label: str) -> None:
        self._values[name] = value
        self._labels[name] = label


def _toml_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.toml"))
    return sorted(files, key=lambda file: file.name != "default.toml")
