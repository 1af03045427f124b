"""A log-in that was checked elsewhere, by a directory or an identity provider, and is to become a token of ours.

Law: who may come in is said by the outside, what they may do by the tables here: a group that stands in no table
grants nothing, and whoever has no role at all is refused like everybody else.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nexus_ray.security.jose import refused

_PLAIN = re.compile(r"[!#-%(-;=?-~]+\Z")  # These end up in XML, where a quote would end the attribute.
PRINCIPAL_CHARACTERS_MAX = 190  # A token's principal has 200, and the provider's name goes before it.


class LdapSettings(BaseModel):
    """A directory whose users may log in; none if `url` is empty."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = ""
    """`ldaps://HOST:PORT`; nothing else, for a password crosses."""
    ca_file: Path | None = None
    """Authorities that may have signed the directory's certificate, PEM; the machine's if not set."""
    user_dn: str = ""
    """Where a user stands, with `{user}` for the name: `uid={user},ou=people,dc=example`. Or search, see below."""
    bind_dn: str = ""
    """The account that searches for users, where no rule tells their place."""
    bind_password_file: Path | None = None
    """File with its password."""
    user_base: str = ""
    """Below what to search."""
    user_filter: str = "(&(objectClass=inetOrgPerson)(uid={user}))"
    """Which entry is the user's."""
    name_attribute: str = "uid"
    """The attribute of the entry that becomes the principal, as the directory writes it: `ADA` and `ada` are one."""
    group_base: str = ""
    """Below what groups are searched."""
    group_filter: str = "(&(objectClass=groupOfNames)(member={dn}))"
    """Which groups have the user."""
    roles: dict[str, tuple[str, ...]] = {}
    """Roles here by the group's name in full; what stands not here grants nothing."""
    tenant: str = Field(default="main", min_length=1)
    """The tenant of all of its users."""
    groups_max: int = Field(default=500, ge=1)
    """Groups of one user that are read; somebody with more is refused rather than known in part."""
    timeout_s: float = Field(default=5.0, gt=0, le=60)
    """How long the directory may take for one answer; a log-in has five at most."""
    concurrent_max: int = Field(default=8, ge=1, le=64)
    """Log-ins at one time, a thread and a connection each; more are refused."""

    @model_validator(mode="after")
    def _fits(self) -> "LdapSettings":
        if not self.url:
            return self
        parts = urlsplit(self.url)
        is_bare = parts.path in ("", "/") and not parts.query and "@" not in self.url
        if parts.scheme != "ldaps" or not parts.hostname or not is_bare:
            raise ValueError("the url of a directory is ldaps://HOST:PORT; a password never crosses in clear")
        if bool(self.user_dn) == bool(self.bind_dn):
            raise ValueError("either user_dn says where users stand, or bind_dn and its password search for them")
        if self.user_dn and self.user_dn.count("{user}") != 1:
            raise ValueError("user_dn has {user} once")
        if self.bind_dn and not (self.bind_password_file and self.user_base and self.user_filter.count("{user}") == 1):
            raise ValueError("a search needs bind_password_file, user_base, and a user_filter with {user} once")
        if not self.group_base or self.group_filter.count("{dn}") != 1 or not self.roles:
            raise ValueError("group_base, a group_filter with {dn} once, and roles say what users may do")
        return self


class SamlSettings(BaseModel):
    """An identity provider whose users may log in by browser; none if `entity_id` is empty."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    entity_id: str = ""
    """What this fleet is called at the identity provider; the audience of its assertions."""
    acs_url: str = ""
    """Where its answers are sent, to the letter: the front door's address and `/v1/saml/acs`."""
    idp_entity_id: str = ""
    """What the identity provider is called."""
    idp_url: str = ""
    """Where browsers are sent to log in (HTTP-Redirect binding); https, or http on this machine."""
    idp_certificates: tuple[Path, ...] = ()
    """Certificates of the keys that sign, PEM; two while the provider changes its key."""
    name_attribute: str = ""
    """The attribute that becomes the principal; the NameID if not set, which then must not be transient."""
    groups_attribute: str = "groups"
    """The attribute with the groups."""
    roles: dict[str, tuple[str, ...]] = {}
    """Roles here by the group's name; what stands not here grants nothing."""
    tenant: str = Field(default="main", min_length=1)
    """The tenant of all of its users."""
    leeway_s: float = Field(default=30.0, ge=0, le=180)
    """Clock skew that is forgiven; the library forgives 300 s, so no more may be asked for."""
    request_s: float = Field(default=600.0, gt=0, le=3600)
    """How long somebody may take to log in."""
    assertion_age_s: float = Field(default=300.0, gt=0, le=3600)
    """How old an assertion may be."""
    response_bytes_max: int = Field(default=128 * 1024, ge=1024)
    """Largest answer in base64; some hundred groups are 20 KiB."""
    concurrent_max: int = Field(default=4, ge=1, le=64)
    """Answers that are checked at one time, a thread each; more are refused."""

    @model_validator(mode="after")
    def _fits(self) -> "SamlSettings":
        if not self.entity_id:
            return self
        texts = (self.entity_id, self.acs_url, self.idp_entity_id, self.idp_url)
        if not all(_PLAIN.match(text) for text in texts):
            raise ValueError("entity_id, acs_url, idp_entity_id and idp_url are addresses without spaces or quotes")
        for url in (self.acs_url, self.idp_url):
            parts = urlsplit(url)
            is_here = parts.hostname in ("127.0.0.1", "localhost", "::1")
            if not parts.hostname or not (parts.scheme == "https" or (parts.scheme == "http" and is_here)):
                raise ValueError(f"{url!r} is not https, and http is for this machine only")
        if not self.idp_certificates or not self.roles:
            raise ValueError("idp_certificates say whose signature is believed, and roles what users may do")
        return self


class CertificateSettings(BaseModel):
    """Whose client certificates are a log-in; nobody's if `ca_file` is not set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ca_file: Path | None = None
    """Authorities that sign for clients, PEM, and for nobody else: whatever they sign is let in. Read at the start."""
    principal: Literal["spiffe", "subject"] = "spiffe"
    """What names the caller: the SPIFFE id among the alternative names, or the subject (RFC 4514). The session's
    principal is `certificate:` and that."""
    trust_domain: str = ""
    """Whose SPIFFE ids are taken; needed for them."""
    roles: dict[str, tuple[str, ...]] = {}
    """Roles here by name, in full or by its beginning and a `*`; what stands not here grants nothing."""
    tenants: dict[str, str] = {}
    """Tenants in the same way, where the longest counts; all are in `main` if not set, else who stands not here is
    refused."""

    @model_validator(mode="after")
    def _fits(self) -> "CertificateSettings":
        if self.ca_file is not None and self.principal == "spiffe" and not self.trust_domain:
            raise ValueError("SPIFFE ids are of a trust_domain, which is named here")
        return self


@dataclass(frozen=True, slots=True)
class LogIn:
    """Who was checked: `provider` and `method` say by whom and how, `authenticated_at` when, in wall-clock seconds.

    `ends_at` is when the provider's own session ends, if it said so.
    """

    provider: str
    method: str
    principal: str
    roles: tuple[str, ...]
    tenant: str
    authenticated_at: float
    acr: str = ""
    amr: tuple[str, ...] = ()
    ends_at: float = math.inf


def principal_of(provider: str, name: str) -> str:
    """Return what somebody of a provider is called here; never what a local principal or another provider's is.

    Raises:
        UnauthenticatedError: The name is empty, too long or not printable.
    """
    if not name or len(name) > PRINCIPAL_CHARACTERS_MAX or not name.isprintable() or name != name.strip():
        raise refused("principal")
    return f"{provider}:{name}"


def roles_of(groups: Iterable[str], table: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Return the roles that these groups grant, each once and in order.

    Raises:
        UnauthenticatedError: There are none.
    """
    roles = sorted({role for group in groups for role in table.get(group, ())})
    if not roles:
        raise refused("no_role")
    return tuple(roles)
