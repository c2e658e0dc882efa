"""Every setting, its default and its limits; the only reader of the environment and of config/.

Precedence: `config/*.toml` (default.toml first, then by name) < `.env` < environment. A setting
`x_y` is `x_y` in TOML and `GATEWAY_X_Y` in the environment; the names in VENDOR_NAMES are the
vendors' own.
"""

from gateway.settings.sources import (
    CONFIG_DIR,
    VENDOR_NAMES,
    child_environment,
    default_config_dir,
    environment_name,
    load_settings,
    model_environment,
)
from gateway.settings.values import parse_hub_endpoint, parse_ollama_host
from gateway.settings.whole import Settings

__all__ = [
    "CONFIG_DIR",
    "VENDOR_NAMES",
    "Settings",
    "child_environment",
    "default_config_dir",
    "environment_name",
    "load_settings",
    "model_environment",
    "parse_hub_endpoint",
    "parse_ollama_host",
]
