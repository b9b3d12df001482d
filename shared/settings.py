"""Every setting of the platform, read once from the environment (`EPOCHCAST_…`) and passed in from there."""

import socket
import tempfile
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from epochcast.jobs import HOST_NAME

Words = Annotated[tuple[str, ...], NoDecode]
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


class Settings(BaseSettings):
    """One process's settings. `docs/settings.md` says unit, default and reader of each; a test compares the two."""

    model_config = SettingsConfigDict(env_prefix="EPOCHCAST_", frozen=True, extra="ignore", env_ignore_empty=True)

    database_url: SecretStr = SecretStr("sqlite:///.epochcast/epochcast.db")
    broker_url: SecretStr = SecretStr("redis://127.0.0.1:6379/0")
    events_url: SecretStr | None = None
    artifacts_url: str = Field(default_factory=lambda: Path(".epochcast/artifacts").absolute().as_uri())
    secret: SecretStr | None = None
    jwks_url: str | None = None
    issuer: str | None = None
    audience: str | None = None
    allowed_origins: Words = ()
    allowed_hosts: Words = LOOPBACK_NAMES
    bind: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    auth: Literal["token", "none"] = "token"
    gateway_processes: int = Field(default=1, ge=1, le=256)
    ws_max_connections_per_job: int = Field(default=10, ge=1)
    ws_idle_timeout_s: float = Field(default=300, gt=0)
    lease_s: float = Field(default=120, gt=0)
    licence_s: float = Field(default=90, gt=0)
    kill_s: float = Field(default=10, gt=0)
    heartbeat_s: float = Field(default=10, gt=0)
    stop_grace_s: float = Field(default=30, ge=0)
    upload_s: float = Field(default=600, gt=0)
    checkpoints_kept: int = Field(default=2, ge=1)
    running_per_owner: int | None = Field(default=None, ge=1)
    reserve_after_s: float = Field(default=300, ge=0)
    work_dir: Path = Field(default_factory=lambda: Path(tempfile.gettempdir()) / "epochcast-work")
    events_archive_mib: float = Field(default=64, gt=0)
    events_kept_per_job: int = Field(default=10_000, ge=100)
    events_kept_s: int = Field(default=604_800, ge=1)
    host_name: str = Field(default_factory=lambda: socket.gethostname().lower(), pattern=HOST_NAME)
    address: str | None = Field(default=None, pattern=r"^[^\s/]{1,255}$")
    slots: int | None = Field(default=None, ge=0, le=10_000)

    @field_validator("allowed_origins", "allowed_hosts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(word.strip() for word in value.split(",") if word.strip())
        return value

    @field_validator("secret")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value().encode()) < 32:
            raise ValueError("EPOCHCAST_SECRET must have at least 32 bytes, for example from: openssl rand -hex 32")
        return value

    @model_validator(mode="after")
    def _licence_ends_before_lease(self) -> Self:
        if self.licence_s + self.kill_s >= self.lease_s:
            raise ValueError("EPOCHCAST_LICENCE_S + EPOCHCAST_KILL_S must be less than EPOCHCAST_LEASE_S")
        if 3 * self.heartbeat_s >= self.licence_s:
            raise ValueError("3 x EPOCHCAST_HEARTBEAT_S must be less than EPOCHCAST_LICENCE_S")
        return self

    @property
    def events_redis_url(self) -> str:
        """Where the event log lives: its own Redis, else the broker's."""
        return (self.events_url or self.broker_url).get_secret_value()


class SettingsError(ValueError):
    """Raised when the environment holds a value that cannot be used; the message names each variable."""


def from_environment() -> Settings:
    """The settings of this process. Raises SettingsError with one line per wrong variable."""
    try:
        return Settings()
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            name = "EPOCHCAST_" + "_".join(str(part) for part in problem["loc"][:1]).upper() if problem["loc"] else ""
            message = problem["msg"].removeprefix("Value error, ")
            lines.append(f"{name}: {message}" if name else message)
        raise SettingsError("; ".join(lines)) from None
