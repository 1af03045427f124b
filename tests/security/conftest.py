import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nexus_ray.core.clock import ManualClock
from nexus_ray.security.authn import Authenticator
from nexus_ray.security.keys import SigningKey, load_or_create_issuer_key
from nexus_ray.security.tokens import TokenSettings
from tests.security.oidc_server import OidcServer, running

NOW = 1_000_000.0
Forge = Callable[..., str]


def b64(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return load_or_create_issuer_key(tmp_path)


@pytest.fixture
def authenticator(key: SigningKey, tmp_path: Path, clock: ManualClock) -> Authenticator:
    return Authenticator.from_folder(tmp_path, TokenSettings(), clock)


@pytest.fixture
def forge(key: SigningKey) -> Forge:
    """Signs a token with the issuer's own key; `header` and `claims` are changed as told, None takes a field out."""

    def make(header: Any = None, claims: Any = None, *, raw_header: bytes = b"", raw_claims: bytes = b"") -> str:
        full_header = {"alg": "EdDSA", "typ": "nexus+jwt", "kid": key.kid, **(header or {})}
        full_claims = {
            "iss": "nexus-local", "aud": "nexus", "sub": "ann", "iat": NOW, "nbf": NOW, "exp": NOW + 60.0,
            "jti": "1", "roles": ["reader"], **(claims or {}),
        }  # fmt: skip
        parts = []
        for fields, raw in ((full_header, raw_header), (full_claims, raw_claims)):
            kept = {name: value for name, value in fields.items() if value is not None}
            parts.append(b64(raw or json.dumps(kept).encode()))
        signed = ".".join(parts)
        return f"{signed}.{b64(key.private.sign(signed.encode()))}"

    return make


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OidcServer]:
    cache = getattr(request.config, "cache", None)
    with running(cache.mkdir("oidc_server") if cache else tmp_path_factory.mktemp("oidc_server")) as found:
        yield found
