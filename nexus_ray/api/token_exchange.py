"""The exchange of tokens at `POST /v1/token`, in the words of OAuth: RFC 8693, and RFC 6749 for what goes wrong.

Law: errors are the protocol's, since its clients read nothing else; that a token is not accepted is one answer,
whatever the reason.
"""

import orjson
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from nexus_ray.api.gate import proofs_of
from nexus_ray.core.errors import InvalidArgumentError, UnauthenticatedError
from nexus_ray.runtime.front import FrontDoor
from nexus_ray.security.token_exchange import ACCESS_TOKEN, GRANT, TOKEN_TYPES

BODY_BYTES_MAX = 32 * 1024  # Two tokens of a big provider, and what a form adds to them.

_TEXT = {"type": "string"}
_KIND = {"type": "string", "enum": sorted(TOKEN_TYPES)}
EXCHANGE_BODY = {
    "type": "object", "required": ["grant_type", "subject_token", "subject_token_type"], "additionalProperties": False,
    "properties": {
        "grant_type": {"type": "string", "enum": [GRANT]}, "subject_token": _TEXT, "subject_token_type": _KIND,
        "actor_token": _TEXT, "actor_token_type": _KIND, "requested_token_type": _KIND, "scope": _TEXT,
        "audience": _TEXT, "resource": _TEXT,
    },
}  # fmt: skip


class OAuthError(BaseModel):
    """What is wrong, as RFC 6749 says it (5.2)."""

    error: str
    error_description: str = Field(default="")


async def exchange_token(front: FrontDoor, request: Request, fields: dict[str, str], source: str) -> Response:
    """Answer a request for an exchange."""
    if front.token_exchange is None:
        return oauth_error("unsupported_grant_type", "this fleet exchanges no tokens")
    shown = proofs_of(request.scope)
    try:
        found = await front.token_exchange.exchange(fields, shown, source)
    except InvalidArgumentError as error:
        return oauth_error(str(error.details.get("error", "invalid_request")), error.message)
    except UnauthenticatedError:
        return oauth_error("invalid_request", "a token is not accepted")
    answer = {
        "access_token": found.token, "issued_token_type": ACCESS_TOKEN,
        "token_type": "DPoP" if found.needs_proof else "Bearer", "expires_in": found.lifetime_s,
        "scope": " ".join(found.roles),
    }  # fmt: skip
    return Response(orjson.dumps(answer), media_type="application/json")


def oauth_error(error: str, description: str) -> Response:
    """Return an error as clients of OAuth expect it."""
    body = {"error": error, "error_description": description}
    return Response(orjson.dumps(body), 400, media_type="application/json")
