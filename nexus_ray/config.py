"""Settings: one tree, from the environment (`NEXUS_GOALS__GOALS_MAX=…`) and an optional TOML file.

Law: each section is declared beside the code it tunes; a misspelt variable is refused, not ignored. Secrets are not
settings: settings hold paths to them.
"""

import difflib
import math
import os
import socket
import tomllib
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from nexus_ray.agents.runner import RunnerSettings
from nexus_ray.audit.limits import AuditSettings
from nexus_ray.core.errors import InvalidArgumentError
from nexus_ray.goals.limits import CoordinatorSettings
from nexus_ray.ledger.limits import LedgerSettings
from nexus_ray.observe.operation import ObserveSettings
from nexus_ray.security.revocation import RevocationSettings
from nexus_ray.security.settings import SecuritySettings
from nexus_ray.security.throttle import ThrottleSettings
from nexus_ray.security.tokens import TokenSettings

_PREFIX = "NEXUS_"
OTHER_VARIABLES = {
    "NEXUS_URL": "Address of the fleet that clients speak to; the one that the state folder names if not set.",
    "NEXUS_TOKEN": "Token that clients send; the operator's, out of the state folder, if not set.",
    "NEXUS_CONFIG": "Settings file, TOML; `nexus up --config` comes first.",
}
"""Variables that are no settings of a fleet."""


class RuntimeSettings(BaseModel):
    """Processes, ports and the limits of the front door."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hosts_per_node: int = Field(
        default_factory=lambda: max(2, min(os.cpu_count() or 2, 16)),
        ge=1,
        json_schema_extra={"default_rule": "one a core, from 2 to 16"},
    )
    """Agent hosts: one a core, and two at least, so that a killed one is outlived."""
    ray_cpus: int = Field(
        default_factory=lambda: os.cpu_count() or 2, ge=1, json_schema_extra={"default_rule": "the cores there are"}
    )
    """Cores that Ray may give to agents with `isolation="process"`; hosts themselves take none."""
    object_store_bytes: int = Field(default=200 * 1024 * 1024, ge=75 * 1024 * 1024)
    """Ray's object store; parcels are small and do not go through it. Ray refuses less than 75 MiB."""
    health_interval_s: float = Field(default=1.0, gt=0)
    """How often a host is pinged; one that died is noticed at once, one that hangs after four of these."""
    http_host: str = Field(default="127.0.0.1", min_length=1)
    """Where the front door listens; beyond this machine only with TLS."""
    http_port: int = Field(default=8600, ge=1, le=65535)
    """Port of the front door; one that nothing well-known uses."""
    front: Literal["replica", "proxy"] = "replica"
    """Who listens: the gateway's replica itself, or Ray Serve's proxy before it, at ten times the cost of a request."""
    gateways: int = Field(default=1, ge=1, le=100)
    """Replicas of the front door, some 200 MiB each; where one dies, another answers while it is replaced, which takes
    5 to 10 s. Two are what production wants."""
    connections_max: int = Field(default=2000, ge=1)
    """Connections at one time to a gateway that listens itself; who comes after is answered with 503."""
    dashboard: bool = True
    """Start Ray's dashboard, on loopback and behind Ray's token; `ray job submit` needs it."""
    dashboard_port: int = Field(default=8265, ge=1, le=65535)
    """Port of Ray's dashboard; Ray's own default."""
    dashboard_body_bytes_max: int = Field(default=100 * 1024 * 1024, ge=1)
    """Largest package of a job that goes through `/ray/`; Ray takes no larger one."""
    dashboard_answer_bytes_max: int = Field(default=256 * 1024 * 1024, ge=1)
    """Most that `/ray/` passes on of one answer: logs are the longest of them."""
    dashboard_s_max: float = Field(default=300.0, gt=0)
    """Longest that one request to `/ray/` lasts: a large package over a slow line."""
    dashboard_requests_max: int = Field(default=32, ge=1)
    """Requests to `/ray/` at one time in a gateway, so that who looks takes no room from who submits goals."""
    dashboard_followers_max: int = Field(default=32, ge=1)
    """Logs of jobs that are followed through `/ray/` at one time in a gateway; each holds a connection to Ray."""
    ray_tls_folder: Path | None = None
    """Folder of `tls.crt`, `tls.key` and `ca.crt`, as cert-manager mounts them, that Ray's processes show each other; a
    certificate that is good on this machine only, from the state folder, where not given."""
    ray_metrics: bool = False
    """Open the ports of Ray's own metrics, which ask nobody for credentials; those of Nexus are at `/metrics`."""
    tls_cert: Path | None = None
    """Certificate chain of the front door, PEM."""
    tls_key: Path | None = None
    """Private key of the front door, PEM."""
    trusted_proxies: tuple[str, ...] = ()
    """Networks of proxies before the front door, such as `10.0.0.7/32`, whose word on where a request comes from is
    believed; in the environment as JSON. Nobody's, if not set: limits and policies then see the proxy."""
    proxy_header: Literal["x-forwarded-for", "forwarded"] = "x-forwarded-for"
    """The header that they write, and that callers cannot get past them."""
    body_bytes_max: int = Field(default=1024 * 1024, ge=1)
    """Largest request body; a larger payload belongs in a store, with its address in the payload."""
    batch_goals_max: int = Field(default=1000, ge=1, le=10_000)
    """Most goals of one batch: above some hundred there is nothing to gain; the ledger takes as many at a time."""
    batch_bytes_max: int = Field(default=8 * 1024 * 1024, ge=1)
    """Largest body of a batch; one goal of it may have `body_bytes_max`."""
    batches_in_flight_max: int = Field(default=16, ge=1)
    """Batches that a gateway reads at one time, each whole in memory; more are refused with 503."""
    page_size_max: int = Field(default=200, ge=1)
    """Most goals on a page; a page of large results stays under what a client can hold."""
    wait_s_max: float = Field(default=60.0, gt=0)
    """Longest time that a request may wait for a goal; proxies cut longer ones."""
    requests_in_flight_max: int = Field(default=256, ge=1)
    """Requests at one time in a gateway; more are refused with 503."""


    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        for text in networks:
            ip_network(text)  # Its complaint says what is wrong.
        return networks


class Settings(BaseSettings):
    """All settings of a fleet."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, env_nested_delimiter="__", env_ignore_empty=True, frozen=True, extra="forbid"
    )

    state_dir: Path = Field(
        default_factory=lambda: Path.home() / ".nexus", json_schema_extra={"default_rule": "~/.nexus"}
    )
    """Where keys, ledger, traces and logs are kept. Not in a settings file: clients look in the environment only."""
    observe: ObserveSettings = ObserveSettings()
    ledger: LedgerSettings = LedgerSettings()
    audit: AuditSettings = AuditSettings()
    tokens: TokenSettings = TokenSettings()
    security: SecuritySettings = SecuritySettings()
    revocation: RevocationSettings = RevocationSettings()
    throttle: ThrottleSettings = ThrottleSettings()
    agents: RunnerSettings = RunnerSettings()
    goals: CoordinatorSettings = CoordinatorSettings()
    runtime: RuntimeSettings = Field(default_factory=RuntimeSettings)

    @field_validator("state_dir")
    @classmethod
    def _in_full(cls, path: Path) -> Path:
        return path.expanduser().absolute()  # Ray's processes stand in other folders.


def load(config_file: Path | None = None, **overrides: Any) -> Settings:
    """Return the settings of the environment, over those of a TOML file, under `overrides`.

    Raises:
        InvalidArgumentError: A variable or field is unknown or malformed; the message names it.
    """
    _check_environment()
    path = config_file or (Path(os.environ["NEXUS_CONFIG"]) if os.environ.get("NEXUS_CONFIG") else None)
    try:
        from_file = tomllib.loads(path.read_text()) if path is not None else {}
    except OSError as error:
        raise InvalidArgumentError(f"the settings file {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"the settings file {path} is not TOML: {error}") from None
    if "state_dir" in from_file:
        raise InvalidArgumentError(f"{path}: state_dir is set by NEXUS_STATE_DIR, where clients look for it too")
    try:
        from_environment = Settings().model_dump(exclude_unset=True)
        merged = _merge(_merge(from_file, from_environment), overrides)
        settings = Settings.model_validate(merged)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise InvalidArgumentError(f"setting {name}: {first['msg']}") from None
    except SettingsError as error:
        raise InvalidArgumentError(f"the environment: {error}") from None
    _check_numbers(settings.model_dump(), "")
    return _with_cluster(settings)


def _with_cluster(settings: Settings) -> Settings:
    """Name the fleet once, where it is started: its processes on other machines must give the same name."""
    if not settings.ledger.url or settings.ledger.cluster:
        return settings
    cluster = f"{socket.gethostname()}:{settings.state_dir}"
    return settings.model_copy(update={"ledger": settings.ledger.model_copy(update={"cluster": cluster})})


def _check_numbers(values: dict[str, Any], prefix: str) -> None:
    """Refuse what no setting can mean: lengths, counts and ratios are numbers from zero on."""
    for name, value in values.items():
        if isinstance(value, dict):
            _check_numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not 0 <= value < math.inf:
            raise InvalidArgumentError(f"setting {prefix}{name}: {value} is not a number from zero on")


def _merge(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    merged = dict(low)
    for name, value in high.items():
        below = merged.get(name)
        merged[name] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _check_environment() -> None:
    known = set(OTHER_VARIABLES)
    for name, field in Settings.model_fields.items():
        known.add(f"{_PREFIX}{name}".upper())
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            known.update(f"{_PREFIX}{name}__{inner}".upper() for inner in section.model_fields)
    for name in os.environ:
        if name.startswith(_PREFIX) and name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise InvalidArgumentError(f"there is no setting {name}{hint}")
