"""Settings of log-ins: which identity providers are believed, and what a proof of possession must look like."""

import re

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nexus_ray.core.errors import UnavailableError
from nexus_ray.security.fetch import check_url
from nexus_ray.security.jwk import ALGORITHMS
from nexus_ray.security.login import CertificateSettings, LdapSettings, SamlSettings
from nexus_ray.security.policy_settings import PolicySettings

_TAKEN = ("local", "ldap", "saml", "certificate")  # What others' principals begin with.
_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}\Z")  # It ends up in a metric's label and before a principal's name.


class OidcProvider(BaseModel):
    """An OpenID Connect provider whose access tokens are taken."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    issuer: str
    """Who signs: the exact `iss`, and where discovery begins; https, or http on this machine."""
    audience: str = Field(min_length=1)
    """Whom a token must be for; without it every token of that issuer for anybody would open this fleet."""
    client_id: str = ""
    """As which client `nexus login` asks; that verb needs it and nothing else does."""
    scopes: tuple[str, ...] = ("openid", "offline_access")
    """What `nexus login` asks for."""
    algorithms: tuple[str, ...] = ("EdDSA", "ES256", "PS256", "RS256")
    """Signatures that are believed; never HMAC, for the keys are public."""
    types: tuple[str, ...] = ("at+jwt", "application/at+jwt")
    """Values of `typ`; RFC 9068's by default, so that an ID token is no access token. "" takes tokens without."""
    principal_claim: str = "sub"
    """The claim that names the caller; the session's principal is the provider's name, a colon and this."""
    tenant_claim: str = ""
    """The claim that names the tenant; all are in `main` if not set."""
    tenants: dict[str, str] = {}
    """Tenants here by what the claim says; any other value is refused."""
    roles_claim: str = "roles"
    """The claim that holds groups or roles, a list or one text with spaces; dots lead into objects."""
    roles: dict[str, tuple[str, ...]] = {}
    """Roles here by what that claim holds; what stands not here grants nothing."""
    acr_values: tuple[str, ...] = ()
    """One of these must be the token's `acr`; any will do if none is named."""
    leeway_s: float = Field(default=5.0, ge=0, le=60)
    """Clock skew that is forgiven."""
    lifetime_max_s: float = Field(default=86_400.0, gt=0)
    """Longest life of a token; providers give an hour, some a day."""
    token_bytes_max: int = Field(default=8192, ge=512)
    """A longer one is not looked at; group claims make them long."""
    keys_fresh_s: float = Field(default=300.0, gt=0)
    """How long keys are believed before they are asked for again: so long does a withdrawn one live on, in tokens that
    were seen before too."""
    keys_stale_s: float = Field(default=6 * 3600.0, gt=0)
    """How long old keys serve while the provider does not answer; then its tokens are refused."""
    cooldown_s: float = Field(default=30.0, ge=0)
    """Shortest time between two requests for keys, so that made-up key ids are no way to flood the provider."""
    timeout_s: float = Field(default=5.0, gt=0, le=60)
    """How long one document may take."""
    document_bytes_max: int = Field(default=256 * 1024, ge=1024)
    """Largest document that is read."""
    private_addresses: bool = False
    """Let the provider be at a private address; link-local ones, where clouds keep secrets, stay refused."""

    @model_validator(mode="after")
    def _fits(self) -> "OidcProvider":
        try:
            check_url(self.issuer, may_be_loopback=True)
        except UnavailableError as error:
            raise ValueError(error.message) from None
        if "?" in self.issuer:
            raise ValueError("an issuer has no query")
        if not self.algorithms or not set(self.algorithms) <= ALGORITHMS - {"HS256"}:
            raise ValueError(f"algorithms are among {', '.join(sorted(ALGORITHMS - {'HS256'}))}")
        if not self.types or bool(self.tenants) != bool(self.tenant_claim):
            raise ValueError("types are named, and tenants together with the claim that tells them")
        return self


class SecuritySettings(BaseModel):
    """Whom else to believe beside the local issuer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    oidc: dict[str, OidcProvider] = {}
    """OpenID Connect providers by a name of ours; in the environment as JSON."""
    ldap: LdapSettings = LdapSettings()
    """A directory whose users log in at `POST /v1/token`; in the environment as JSON."""
    saml: SamlSettings = SamlSettings()
    """An identity provider whose users log in by browser at `/v1/saml/login`; in the environment as JSON."""
    certificates: CertificateSettings = CertificateSettings()
    """Client certificates that are a log-in, where the front door's own listener ends TLS; in the environment as
    JSON."""
    policy: PolicySettings = PolicySettings()
    """Which engine decides who may do what, and whose signature its policy carries; in the environment as JSON."""
    exchanged_s: float = Field(default=900.0, gt=0, le=86_400)
    """Life of a token that such a log-in is exchanged for; who was removed there is let in here for so long."""
    exchanges_a_minute_max: int = Field(default=120, ge=1)
    """Tokens that one principal has exchanged within a minute at a gateway: each is a record of the audit log."""
    public_url: str = ""
    """Address under which clients know the front door: what a DPoP proof names; needed for them beyond loopback."""
    proof_age_s: float = Field(default=60.0, gt=0, le=600)
    """How old a DPoP proof may be; so long is its id remembered."""
    proofs_max: int = Field(default=100_000, ge=1)
    """DPoP proofs that are remembered, some 20 MiB; beyond them proofs are refused, never forgotten."""

    @model_validator(mode="after")
    def _are_apart(self) -> "SecuritySettings":
        if len({provider.issuer for provider in self.oidc.values()}) != len(self.oidc):
            raise ValueError("two providers have one issuer")
        wrong = [name for name in self.oidc if not _NAME.match(name) or name in _TAKEN]
        if wrong:
            taken = ", ".join(_TAKEN)
            raise ValueError(f"{wrong[0]!r} is no name of a provider: use a-z, 0-9 and '-', and not {taken}")
        return self
