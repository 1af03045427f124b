"""Log-ins at an OpenID Connect provider for a person at a terminal: by a code on another device, or in the browser.

Law: an answer is believed only if it is of the provider that was asked (`iss`), for this very question (`state`,
`nonce`), and redeemed by whoever asked (PKCE). No password passes through here, and no secret is on a command line.
Sources: RFC 6749, 7636, 8252, 8628, 9207; OpenID Connect Core 1.0.
"""

import hashlib
import http.server
import secrets
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx2

from nexus_ray.core.errors import FailedPreconditionError, UnauthenticatedError, UnavailableError
from nexus_ray.security import jose
from nexus_ray.security.fetch import check_url, is_loopback_url
from nexus_ray.security.jwk import base64url, read_key_set
from nexus_ray.security.settings import OidcProvider

BROWSER_S = 300.0  # As long as a person may need in the browser.
_POLL_S = 5.0  # RFC 8628, 3.2.
_POLL_MAX_S = 1800.0
_ANSWER_BYTES_MAX = 256 * 1024
_CALLBACK = "/callback"
_DONE = b"<!doctype html><title>Nexus</title><p>You may close this window and go back to the terminal."


class Asker:
    """Speaks to one provider as one public client."""

    def __init__(self, provider: OidcProvider, http: httpx2.Client) -> None:
        if not provider.client_id:
            raise FailedPreconditionError("this provider has no client_id in the settings: `nexus login` needs one")
        self._provider = provider
        self._http = http
        self._discovery = self._json("GET", f"{provider.issuer.rstrip('/')}/.well-known/openid-configuration")
        if self._discovery.get("issuer") != provider.issuer:
            raise UnauthenticatedError("the provider's discovery document is of another issuer")

    def by_device(self, tell: Callable[[str], None], pause: Callable[[float], None] = time.sleep) -> dict[str, Any]:
        """Have a person enter a code elsewhere; returns the provider's tokens.

        Raises:
            UnauthenticatedError: Refused, or not in time.
        """
        asked = self._post("device_authorization_endpoint", scope=" ".join(self._provider.scopes))
        code, page = asked.get("device_code"), asked.get("verification_uri_complete") or asked.get("verification_uri")
        if not isinstance(code, str) or not isinstance(page, str):
            raise UnavailableError("the provider gives no device code")
        tell(f"open {page} and confirm the code {asked.get('user_code')}")
        interval_s = max(1.0, _number(asked.get("interval"), _POLL_S))
        left_s = min(_number(asked.get("expires_in"), _POLL_MAX_S), _POLL_MAX_S)
        while left_s > 0:
            pause(interval_s)
            left_s -= interval_s
            answer = self._token(grant_type="urn:ietf:params:oauth:grant-type:device_code", device_code=code)
            problem = answer.get("error")
            if problem == "slow_down":
                interval_s += _POLL_S
            elif problem != "authorization_pending":
                return self._checked(answer)
        raise UnauthenticatedError("nobody confirmed the code in time: `nexus login` asks again")

    def by_browser(self, show: Callable[[str], None], wait_s: float = BROWSER_S) -> dict[str, Any]:
        """Have a person log in in the browser of this machine; returns the provider's tokens.

        Raises:
            UnauthenticatedError: Refused, not in time, or an answer that is not to our question.
        """
        verifier, state, nonce = (secrets.token_urlsafe(48) for _ in range(3))
        with _Listener() as listener:
            redirect = f"http://127.0.0.1:{listener.server_address[1]}{_CALLBACK}"
            question = {
                "client_id": self._provider.client_id, "response_type": "code", "redirect_uri": redirect,
                "scope": " ".join(self._provider.scopes), "state": state, "nonce": nonce,
                "code_challenge": base64url(hashlib.sha256(verifier.encode()).digest()),
                "code_challenge_method": "S256",
            }  # fmt: skip
            if "offline_access" in self._provider.scopes:
                question["prompt"] = "consent"  # Without it no refresh token is given (Core 1.0, section 11).
            page = self._endpoint("authorization_endpoint")
            show(f"{page}{'&' if '?' in page else '?'}{urlencode(question)}")
            answer = listener.wait(wait_s, state)
        self._check_answer(answer)
        tokens = self._checked(
            self._token(
                grant_type="authorization_code", code=answer["code"], redirect_uri=redirect, code_verifier=verifier
            )
        )
        self._check_nonce(tokens.get("id_token"), nonce)
        return tokens

    def refresh(self, refresh_token: str) -> dict[str, Any]:
        """Return new tokens for a refresh token.

        Raises:
            UnauthenticatedError: The provider takes it no more.
        """
        return self._checked(self._token(grant_type="refresh_token", refresh_token=refresh_token))

    def revoke(self, refresh_token: str) -> None:
        """Tell the provider that a refresh token is used no more, if it wants to know."""
        if "revocation_endpoint" in self._discovery:
            self._send("POST", self._endpoint("revocation_endpoint"), token=refresh_token)

    def _check_answer(self, answer: dict[str, str]) -> None:
        named = answer.get("iss")
        is_promised = self._discovery.get("authorization_response_iss_parameter_supported") is True
        # Another provider's answer must not be redeemed at this one: mix-up (RFC 9207, 2.4).
        if (named is None and is_promised) or (named is not None and named != self._provider.issuer):
            raise UnauthenticatedError("the answer is of another provider")
        if "error" in answer or "code" not in answer:
            raise UnauthenticatedError("the provider refused the log-in")

    def _check_nonce(self, id_token: Any, nonce: str) -> None:
        if "openid" not in self._provider.scopes:
            return
        keys = read_key_set(self._json("GET", self._endpoint("jwks_uri")))
        rules = jose.Rules(
            issuer=self._provider.issuer,
            audiences=frozenset({self._provider.client_id}),
            algorithms=frozenset(self._provider.algorithms),
            types=frozenset({"", "JWT"}),
            ignored=frozenset({"x5t", "x5t#S256"}),
            bytes_max=16_384,
        )
        if not isinstance(id_token, str):
            raise UnauthenticatedError("the provider gives no ID token")
        parsed = jose.parse(id_token, rules.bytes_max)
        jose.verify(parsed, keys, rules)
        claims = jose.read_object(parsed.payload)
        jose.check_claims(claims, rules, time.time())
        if not jose.same(claims.get("nonce"), nonce):
            raise UnauthenticatedError("the answer is to another question")

    def _checked(self, answer: dict[str, Any]) -> dict[str, Any]:
        token, kind = answer.get("access_token"), answer.get("token_type")
        if not isinstance(token, str) or not token or str(kind).lower() != "bearer":
            raise UnauthenticatedError("the provider refused the log-in")
        return answer

    def _token(self, **form: str) -> dict[str, Any]:
        return self._post("token_endpoint", **form)

    def _post(self, endpoint: str, **form: str) -> dict[str, Any]:
        return self._json("POST", self._endpoint(endpoint), **form)

    def _endpoint(self, name: str) -> str:
        address = self._discovery.get(name)
        if not isinstance(address, str):
            raise FailedPreconditionError(f"the provider has no {name}")
        return address

    def _json(self, method: str, url: str, **form: str) -> dict[str, Any]:
        answer = self._send(method, url, **form)
        try:
            found = answer.json()
        except ValueError:
            found = None
        if not isinstance(found, dict) or answer.status_code >= 500:
            raise UnavailableError("the identity provider answers no JSON")
        return found

    def _send(self, method: str, url: str, **form: str) -> httpx2.Response:
        check_url(url, may_be_loopback=is_loopback_url(self._provider.issuer))
        content = {**form, "client_id": self._provider.client_id} if method == "POST" else None
        try:
            answer = self._http.request(method, url, data=content, headers={"Accept": "application/json"})
        except httpx2.HTTPError:
            raise UnavailableError("the identity provider does not answer") from None
        if len(answer.content) > _ANSWER_BYTES_MAX or answer.is_redirect:
            raise UnavailableError("the identity provider answers what cannot be used")
        return answer


class _Listener(http.server.HTTPServer):
    """Waits on loopback for the browser to come back; takes the one answer that carries our `state`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Seat)
        self.state = ""
        self.answer: dict[str, str] = {}

    def wait(self, wait_s: float, state: str) -> dict[str, str]:
        """Return the parameters of the answer.

        Raises:
            UnauthenticatedError: None came in time.
        """
        self.state = state
        ends_at = time.monotonic() + wait_s
        while not self.answer:
            self.timeout = max(0.0, ends_at - time.monotonic())
            if not self.timeout:
                raise UnauthenticatedError("nobody logged in in time: `nexus login` asks again")
            self.handle_request()
        return self.answer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: whoever hangs up has not answered."""


class _Seat(http.server.BaseHTTPRequestHandler):
    server: _Listener
    timeout = 5.0  # Of one connection: another program that connects and says nothing must not hold us up.

    def do_GET(self) -> None:
        """Take the answer, or refuse what is none."""
        parts = urlsplit(self.path)
        named = parse_qs(parts.query, max_num_fields=20)
        is_ours = parts.path == _CALLBACK and all(len(values) == 1 for values in named.values())
        # Another state is another's answer: not ours to redeem, and no reason to stop waiting for our own.
        if is_ours and jose.same(named.get("state", [None])[0], self.server.state):
            self.server.answer = {name: values[0] for name, values in named.items()}
        self.send_response(200 if self.server.answer else 400)
        self.send_header("Content-Type", "text/html")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Referrer-Policy", "no-referrer")
        self.end_headers()
        self.wfile.write(_DONE if self.server.answer else b"")

    def version_string(self) -> str:
        """Tell nobody what answers here."""
        return "nexus"

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing: the address holds the code."""


def _number(value: Any, default: float) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e9
    return float(value) if is_number else default


def choose(providers: dict[str, OidcProvider], name: str | None) -> tuple[str, OidcProvider]:
    """Return the provider of that name, or the only one.

    Raises:
        FailedPreconditionError: There is none of that name, or more than one to choose from.
    """
    if name is None and len(providers) == 1:
        name = next(iter(providers))
    if name is None or name not in providers:
        known = ", ".join(sorted(providers)) or "none: set NEXUS_SECURITY__OIDC"
        raise FailedPreconditionError(f"which provider? The settings have {known}")
    return name, providers[name]
