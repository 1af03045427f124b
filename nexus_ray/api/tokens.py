"""Routes that give tokens: for a directory's password, an identity provider's answer, or another token.

Law: open to strangers, so everything is bounded before it is looked at: size, time to send it, attempts. No address
that a caller wrote is ever an address to go to: `RelayState` is not read at all.
"""

import asyncio
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qsl

import orjson
from fastapi import FastAPI, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from nexus_ray.api.openapi import answer, refusals
from nexus_ray.api.proxies import peer_of
from nexus_ray.api.token_exchange import BODY_BYTES_MAX, EXCHANGE_BODY, OAuthError, exchange_token, oauth_error
from nexus_ray.runtime.front import FrontDoor
from nexus_ray.security.exchange import Exchange, Granted
from nexus_ray.security.jose import refused
from nexus_ray.security.token_exchange import GRANT

_COOKIE = "__Host-nexus-saml"
_COOKIE_S = 3600
_PASSWORD_CHARACTERS_MAX = 2048
_BODY_S = 10.0  # A stranger who sends slower holds nothing up for longer.
_FIELDS_MAX = 12


class TokenAnswer(BaseModel):
    """A token, as RFC 6749 has it (5.1)."""

    access_token: str
    token_type: str
    expires_in: int = Field(description="Seconds.")
    issued_token_type: str | None = Field(default=None, description="Of a token that was exchanged: an access token.")
    scope: str | None = Field(default=None, description="Of a token that was exchanged: its roles.")


_EXAMPLE = {"access_token": "eyJhbGciOiJFZERTQSJ9.e30.c2ln", "token_type": "Bearer", "expires_in": 900}
_PASSWORD = {
    "type": "object", "required": ["username", "password"], "additionalProperties": False,
    "properties": {
        "username": {"type": "string", "maxLength": 190}, "password": {"type": "string", "maxLength": 1024},
        "grant_type": {"type": "string", "enum": ["password"]},
    },
}  # fmt: skip
_ASSERTION = {
    "type": "object", "required": ["SAMLResponse"],
    "properties": {"SAMLResponse": {"type": "string"}, "RelayState": {"type": "string"}},
}  # fmt: skip
_FORM = "application/x-www-form-urlencoded"
_TOKEN = {"oneOf": [_PASSWORD, EXCHANGE_BODY]}
_PASSWORD_BODY = {"required": True, "content": {kind: {"schema": _TOKEN} for kind in ("application/json", _FORM)}}
_ASSERTION_BODY = {"required": True, "content": {_FORM: {"schema": _ASSERTION}}}


_METADATA = '<md:EntityDescriptor xmlns:md="urn:oasis:names:tc:SAML:2.0:metadata" entityID="https://fleet.example"/>'


class _Text(Response):
    media_type = "text/plain"


class _Xml(Response):
    media_type = "application/samlmetadata+xml"


def token_routes(app: FastAPI, front: FrontDoor) -> None:
    """Add the routes."""

    @app.post(
        "/v1/token",
        tags=["log-in"],
        openapi_extra={"requestBody": _PASSWORD_BODY},
        responses={
            200: answer(TokenAnswer, "A short token.", _EXAMPLE),
            400: answer(OAuthError, "What is wrong, as RFC 6749 says it.", {"error": "invalid_scope"}),
            **refusals(429),
        },
    )
    async def token(request: Request) -> Response:
        """Return a token for a user and password of the directory, or for another token that it has less than.

        Over TLS, or from this machine. The exchange of tokens is RFC 8693's, and its errors RFC 6749's.
        """
        host = _source(request)
        # Clear is what comes to us, from a proxy too: where it asks from elsewhere on behalf of others, it uses TLS.
        if request.scope["scheme"] != "https" and not _is_here(peer_of(request.scope)):
            raise refused("plain")
        fields = await _fields(request, BODY_BYTES_MAX, may_be_json=True)
        grant = fields.pop("grant_type", "password")
        if grant == GRANT:
            return await exchange_token(front, request, fields, host)
        if grant != "password":
            return oauth_error("unsupported_grant_type", f"grants are password and {GRANT}")
        if set(fields) != {"username", "password"} or sum(map(len, fields.values())) > _PASSWORD_CHARACTERS_MAX:
            raise refused("fields")
        return _granted(await _exchange(front).by_password(fields["username"], fields["password"], host))

    _saml_routes(app, front)


def _saml_routes(app: FastAPI, front: FrontDoor) -> None:
    @app.get(
        "/v1/saml/login",
        tags=["log-in"],
        status_code=303,
        response_class=_Text,
        responses={303: answer(None, "To the identity provider.", media_type="text/plain",
                               headers={"Location": "Where to log in.", "Set-Cookie": "What the answer needs."}),
                   **refusals()},
    )  # fmt: skip
    async def saml_login() -> Response:
        """Send a browser to the identity provider."""
        begun = _exchange(front).begin()
        # Another site's form posts the answer, so `SameSite=None`; `__Host-` keeps other hosts from setting it.
        cookie = f"{_COOKIE}={begun.cookie}; Path=/; Max-Age={_COOKIE_S}; Secure; HttpOnly; SameSite=None"
        return _Text("", 303, {"Location": begun.url, "Set-Cookie": cookie})

    @app.post(
        "/v1/saml/acs",
        tags=["log-in"],
        openapi_extra={"requestBody": _ASSERTION_BODY},
        responses={200: answer(TokenAnswer, "A short token.", _EXAMPLE), **refusals(429)},
    )
    async def saml_acs(request: Request) -> Response:
        """Return a token for the identity provider's answer, which the browser posts."""
        exchange = _exchange(front)
        # In a form `+`, `/` and `=` take three bytes each.
        fields = await _fields(request, exchange.response_bytes_max * 3 // 2)
        if not {"SAMLResponse"} <= set(fields) <= {"SAMLResponse", "RelayState"}:
            raise refused("fields")
        cookie = request.cookies.get(_COOKIE, "")
        granted = await exchange.by_assertion(fields["SAMLResponse"], cookie, _source(request))
        response = _granted(granted)
        response.headers["Set-Cookie"] = f"{_COOKIE}=; Path=/; Max-Age=0; Secure; HttpOnly; SameSite=None"
        return response

    @app.get(
        "/v1/saml/metadata",
        tags=["log-in"],
        response_class=_Xml,
        responses={
            200: answer(None, "SAML metadata.", _METADATA, media_type="application/samlmetadata+xml"),
            **refusals(),
        },
    )
    async def saml_metadata() -> Response:
        """Return what the identity provider is to know about this fleet."""
        return _Xml(_exchange(front).metadata())


def _exchange(front: FrontDoor) -> Exchange:
    if front.exchange is None:
        raise refused("no_provider")  # The same answer as everywhere else where there is nothing for strangers.
    return front.exchange


def _source(request: Request) -> str:
    """Return where a request comes from; what a header says of that is believed of proxies in the settings only."""
    return request.client.host if request.client else ""


def _is_here(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _granted(granted: Granted) -> Response:
    found = {"access_token": granted.token, "token_type": "Bearer", "expires_in": granted.lifetime_s}
    return Response(orjson.dumps(found), media_type="application/json")


async def _fields(request: Request, limit: int, may_be_json: bool = False) -> dict[str, str]:
    """Return the fields of a form, or of a JSON object, all texts and each once.

    Raises:
        UnauthenticatedError: Too long, too slow, or neither; a stranger learns no more than that it failed.
    """
    body = b""
    try:
        async with asyncio.timeout(_BODY_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise refused("body_size")
    except TimeoutError:
        raise refused("body_time") from None
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json" and may_be_json:
        return _of_json(body)
    if kind != _FORM:
        raise refused("media_type")
    try:
        pairs = parse_qsl(
            body.decode("ascii"), keep_blank_values=True, strict_parsing=True, errors="strict",
            max_num_fields=_FIELDS_MAX,
        )  # fmt: skip
    except ValueError:
        raise refused("form") from None
    if len(dict(pairs)) != len(pairs):
        raise refused("form")  # Of two, another reader may take the other one.
    return dict(pairs)


def _of_json(body: bytes) -> dict[str, str]:
    try:
        found: Any = orjson.loads(body)
    except ValueError:
        raise refused("json") from None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise refused("json")
    return found
