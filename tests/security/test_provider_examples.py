"""The documented examples of identity providers are settings that a fleet takes."""

from pathlib import Path

import pytest

from nexus_ray.config import load

FOLDER = Path(__file__).parents[2] / "serve_configs" / "providers"


@pytest.mark.parametrize("name", ["oidc", "saml", "ldap", "certificates"])
def test_an_example_of_a_provider_configures_exactly_that_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEXUS_CONFIG", raising=False)

    security = load(FOLDER / f"{name}.toml").security

    configured = {
        "oidc": bool(security.oidc), "saml": bool(security.saml.entity_id), "ldap": bool(security.ldap.url),
        "certificates": security.certificates.ca_file is not None,
    }  # fmt: skip
    assert [each for each, is_there in configured.items() if is_there] == [name]


def test_every_example_is_looked_at() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {"oidc.toml", "saml.toml", "ldap.toml", "certificates.toml"}
