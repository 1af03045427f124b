"""`nexus login` and `nexus logout`: be somebody whom an identity provider knows, instead of the operator.

Law: what is kept is for one fleet, in one file that is its owner's alone; it is sent to no other address.
"""

import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nexus_ray.cli.show import moment, print_json, say
from nexus_ray.core.errors import FailedPreconditionError, NexusError, UnauthenticatedError

if TYPE_CHECKING:
    import httpx2


def login(
    provider: Annotated[
        str | None, typer.Argument(help="A name from security.oidc; the only one if not given.")
    ] = None,
    device: Annotated[bool, typer.Option("--device", help="Confirm a code on another device.")] = False,
    open_browser: Annotated[bool, typer.Option(help="Open the browser, or only print the address.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Log in at an identity provider; what `nexus` does then, it does as you."""
    from nexus_ray.cli.oauth import Asker, choose
    from nexus_ray.config import load
    from nexus_ray.core.clock import SystemClock
    from nexus_ray.runtime.fleet_file import read_login

    settings = load()
    folder = settings.state_dir
    name, chosen = choose(settings.security.oidc, provider)
    url = _fleet_url(folder)
    before = read_login(folder)
    with _client() as http:
        asker = Asker(chosen, http)
        tokens = None
        held = before.refresh_token if before is not None and before.issuer == chosen.issuer else ""
        if held:
            with contextlib.suppress(UnauthenticatedError):  # It has ended; the person is asked.
                tokens = {"refresh_token": held, **asker.refresh(held)}
        if tokens is None:
            tokens = asker.by_device(say) if device else asker.by_browser(_shower(open_browser))
    expires_at = SystemClock().now() + _lifetime_s(tokens)
    kept = {
        "url": url, "provider": name, "issuer": chosen.issuer, "token": tokens["access_token"],
        "refresh_token": tokens.get("refresh_token", ""),
        "expires_at": expires_at,
    }  # fmt: skip
    _write(folder, kept)
    if as_json:
        print_json({"provider": name, "url": url, "expires_at": expires_at})
        return
    say(f"logged in to {url} at {name}, until {moment(expires_at)}")


def logout(as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False) -> None:
    """Forget the log-in, and tell the provider; `nexus` is the operator again where it may be."""
    from nexus_ray.cli.oauth import Asker
    from nexus_ray.config import load
    from nexus_ray.runtime.fleet_file import login_path, read_login

    settings = load()
    path = login_path(settings.state_dir)
    try:
        found = read_login(settings.state_dir)
    except NexusError:
        found = None  # Damaged, or readable by others: all the more reason to remove it.
    was_in = path.exists()
    path.unlink(missing_ok=True)  # First: whatever the provider says, it is gone here.
    is_told = False
    if found is not None and found.refresh_token:
        chosen = settings.security.oidc.get(found.provider)
        if chosen is not None and chosen.issuer == found.issuer:
            try:
                with _client() as http:
                    Asker(chosen, http).revoke(found.refresh_token)
                is_told = True
            except NexusError as error:
                say(f"the provider was not told: {error.message}")
    if as_json:
        print_json({"was_logged_in": was_in, "provider_told": is_told})
        return
    say("logged out" if was_in else "nobody was logged in")


def _client() -> "httpx2.Client":
    import httpx2

    return httpx2.Client(timeout=10.0, follow_redirects=False)


def _fleet_url(folder: Path) -> str:
    from nexus_ray.runtime.fleet_file import read_fleet_file

    fleet = read_fleet_file(folder)
    url = os.environ.get("NEXUS_URL") or (fleet.url if fleet is not None else "")
    if not url:
        raise FailedPreconditionError("log in to which fleet? Set NEXUS_URL, or start one with `nexus up`")
    return url.rstrip("/")


def _lifetime_s(tokens: dict[str, Any]) -> float:
    value = tokens.get("expires_in")
    # A provider may leave it out; then it is tried until the fleet refuses it.
    return float(value) if isinstance(value, int | float) and 0 < value < 1e9 else 3600.0


def _shower(is_opened: bool) -> Any:
    def show(address: str) -> None:
        import webbrowser

        say("log in in the browser:")
        typer.echo(address, err=True)  # Whole, so that it can be copied.
        if is_opened:
            webbrowser.open(address)

    return show


def _write(folder: Path, kept: dict[str, Any]) -> None:
    from nexus_ray.core.files import replace_file
    from nexus_ray.runtime.fleet_file import login_path

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    replace_file(login_path(folder), json.dumps(kept).encode())
