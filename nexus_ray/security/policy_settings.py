"""Settings of the policy: which engine decides by it, where that is, and whose signature a policy must carry."""

from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class PolicySettings(BaseModel):
    """What decides who may do what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: Literal["embedded", "opa"] = "embedded"
    """Who decides: Rego in each process, or an Open Policy Agent that has the same policy as a bundle."""
    decision_timeout_s: float = Field(default=0.25, gt=0, le=10)
    """How long a decision may take before it is no; a caller waits for it, and so does who stands behind him."""
    bundle: Path | None = None
    """Signed policy that `nexus policy bundle` wrote; `roles.toml` of the state folder where not given."""
    verification_key: Path | None = None
    """Public key of who signs that bundle, PEM, on P-256."""
    opa_address: str = ""
    """Where OPA listens: `unix:///run/opa/opa.sock`, or `https://opa.example:8181` with the three files below."""
    opa_ca: Path | None = None
    """Authority of OPA's certificate, PEM; no other is believed."""
    opa_certificate: Path | None = None
    """Certificate that is shown to OPA, PEM."""
    opa_key: Path | None = None
    """Key of that certificate, PEM."""
    opa_rest_s: float = Field(default=1.0, gt=0, le=60)
    """How long OPA is not asked after it failed, so that not every caller waits for it; doubled up to four times."""

    @field_validator("bundle", "verification_key", "opa_ca", "opa_certificate", "opa_key")
    @classmethod
    def _in_full(cls, path: Path | None) -> Path | None:
        return path and path.expanduser().absolute()  # Ray's processes stand in other folders.

    @model_validator(mode="after")
    def _fits(self) -> "PolicySettings":
        if (self.bundle is None) != (self.verification_key is None):
            raise ValueError("bundle and verification_key are given together")
        if self.engine == "embedded":
            if self.opa_address:
                raise ValueError("opa_address is given, and the engine is not 'opa'")
            return self
        try:
            parts = urlsplit(self.opa_address)
            is_plain = not (parts.query or parts.fragment or parts.username or parts.password) and parts.port != 0
        except ValueError:
            raise ValueError("opa_address is malformed") from None
        if not is_plain or not self.opa_address.isprintable() or " " in self.opa_address:
            raise ValueError("opa_address is malformed")
        if parts.scheme == "unix" and not parts.netloc and parts.path.strip("/"):
            return self
        if parts.scheme != "https" or not parts.hostname or parts.path not in ("", "/"):
            raise ValueError("opa_address is unix:///path/to/socket or https://host:port; plain http is refused")
        if None in (self.opa_ca, self.opa_certificate, self.opa_key):
            raise ValueError("an opa_address of https needs opa_ca, opa_certificate and opa_key")
        return self
