"""The Hugging Face Hub and downloads."""

from functools import cached_property
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr

from gateway.settings.values import Folder, Group, Names, Positive, parse_hub_endpoint


class HubSettings(Group):
    """The Hub, its cache on this machine, downloads."""

    hf_home: Folder | None = Field(None, description="Hugging Face home; default: theirs.")
    hf_hub_cache: Folder | None = Field(None, description="Hub cache; default: hub in HF_HOME.")
    hf_token: SecretStr | None = Field(
        None, description="Token for gated repositories; one that is stored wins over it."
    )
    hub_endpoint: Annotated[str, AfterValidator(parse_hub_endpoint)] = Field(
        "https://huggingface.co", description="URL of the Hub, or of a mirror."
    )
    hub_timeout_s: Positive = Field(10.0, description="Seconds the Hub may take to answer.")
    hub_cache_s: float = Field(
        300.0,
        ge=0,
        allow_inf_nan=False,
        description="Seconds an answer of the Hub is used again without asking.",
    )
    hub_recommended: Names = Field((), description="Models to begin with, comma-separated.")
    hub_require_token_for_downloads: bool = Field(
        False, description="Refuse downloads without a token, but for those to begin with."
    )
    hf_hub_offline: bool = Field(False, description="Never ask the Hub.")
    downloads_at_once: int = Field(2, ge=1, le=64, description="Downloads that run at once.")
    download_connections: int = Field(
        4, ge=1, le=64, description="Files of one download that are fetched at once."
    )
    download_reserve_bytes: int = Field(
        2**30, ge=0, description="Bytes of the disk that downloads leave free."
    )
    downloads_keep_days: int = Field(
        30, ge=0, le=36_500, description="Days that ended downloads stay listed; 0: for ever."
    )

    @cached_property
    def resolved_hub_cache(self) -> Path:
        home = self.hf_home or Path("~/.cache/huggingface").expanduser()
        return self.hf_hub_cache or home / "hub"

    @cached_property
    def resolved_modules_cache(self) -> Path:
        """Where transformers copies the code of models that it runs."""
        return (self.hf_home or Path("~/.cache/huggingface").expanduser()) / "modules"
