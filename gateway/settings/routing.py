"""Which providers there are, and which names lead to their models."""

from functools import cached_property

from pydantic import Field, ValidationInfo, field_validator

from gateway.core.errors import InvalidRequest
from gateway.core.rotation import RESERVED, RotationOrder, check_rotations
from gateway.core.virtual import LISTED_UNDER, VirtualModel, check_rules
from gateway.servers import OpenAIServer, check_names
from gateway.settings.values import (
    Aliases,
    Group,
    Names,
    OpenAIServers,
    Positive,
    Rotations,
    VirtualModels,
)


class RoutingSettings(Group):
    """Providers, aliases, virtual models, listings."""

    providers: Names = Field(("huggingface", "ollama"), description="Providers, comma-separated.")
    aliases: Aliases = Field(
        {},
        description="Other names for models, as a JSON object: alias to provider/model.",
    )
    openai: OpenAIServers = Field(
        {},
        description="OpenAI-compatible servers by name, as a JSON object; see docs/providers.md.",
    )
    virtual_models: VirtualModels = Field(
        {},
        description="Names that stand for several models, as a JSON object; see docs/routing.md.",
    )
    max_continuations: int = Field(
        3, ge=0, description="Times an answer may go on with another model; 0: never."
    )
    rotations: Rotations = Field(
        {},
        description="Names that stand for one model after the other, as a JSON object; "
        "see docs/rotation.md.",
    )
    catalog_timeout_s: Positive = Field(0.8, description="Seconds a listing waits for a provider.")
    catalog_ttl_s: float = Field(1.0, ge=0, description="Seconds a listing is reused.")
    reconcile_interval_s: Positive = Field(15.0, description="Seconds between looks at providers.")

    @field_validator("providers")
    @classmethod
    def _require_provider(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("it names no provider")
        return value

    @field_validator("aliases")
    @classmethod
    def _check_aliases(cls, value: dict[str, str]) -> dict[str, str]:
        for alias, name in value.items():
            if name in value:
                raise ValueError(f"'{alias}' leads to another alias, '{name}'")
        return value

    @field_validator("openai")
    @classmethod
    def _check_servers(
        cls, value: dict[str, OpenAIServer], info: ValidationInfo
    ) -> dict[str, OpenAIServer]:
        check_names(
            value,
            providers=info.data.get("providers", ()),
            aliases=info.data.get("aliases", {}),
            reserved=(RESERVED, LISTED_UNDER),
        )
        return value

    @field_validator("virtual_models")
    @classmethod
    def _check_rules(
        cls, value: dict[str, VirtualModel], info: ValidationInfo
    ) -> dict[str, VirtualModel]:
        try:
            known = (*info.data.get("providers", ()), *info.data.get("openai", ()))
            providers = (*known, RESERVED)
            check_rules(value, providers=providers, aliases=info.data.get("aliases", ()))
        except InvalidRequest as error:
            raise ValueError(error.message) from error
        return value

    @field_validator("rotations")
    @classmethod
    def _check_rotations(
        cls, value: dict[str, RotationOrder], info: ValidationInfo
    ) -> dict[str, RotationOrder]:
        try:
            check_rotations(
                value,
                rules=info.data.get("virtual_models", ()),
                aliases=info.data.get("aliases", {}),
            )
        except InvalidRequest as error:
            raise ValueError(error.message) from error
        return value

    @cached_property
    def provider_kinds(self) -> dict[str, str]:
        """The kind of each provider, by the name that stands before its models' names."""
        return {name: name for name in self.providers} | dict.fromkeys(self.openai, "openai")
