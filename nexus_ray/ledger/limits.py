"""The limits of a ledger, each with its reason, and the checks that every ledger makes before it takes a call.

Law: what is refused here is wrong and stays wrong (`InvalidArgumentError`), and nothing of the call is kept. That a
ledger is busy or full is said elsewhere, by `UnavailableError`.
"""

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from nexus_ray.core.errors import InvalidArgumentError
from nexus_ray.ledger.goal import KEYED, EntryKind, Finish, Goal, Note, RequestCancel, Step, Write

_MIB = 1024 * 1024
_ID_CHARACTERS_MAX = 512  # Ids, step keys and names stand in indexes; ours are under 60 characters.


class LedgerSettings(BaseModel):
    """Which ledger, and how much it takes on."""

    # No inputs in errors: somebody may have put a password where none belongs.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    url: str = Field(
        "",
        description="`postgresql://USER@HOST/DATABASE` for production; none is the embedded ledger, one SQLite file.",
    )
    password_file: Path | None = Field(
        None,
        description="File of mode 0600 with PostgreSQL's password and nothing else: settings travel in clear, "
        "so a password is never one. libpq's PGPASSFILE is read where this is not set.",
    )
    cluster: str = Field(
        "",
        json_schema_extra={"default_rule": "this machine's name and the state folder"},
        description="What this fleet is called in the lease on a PostgreSQL ledger, which one fleet at a time holds.",
    )
    lease_s: float = Field(
        15.0, ge=3, description="A fleet that did not renew its lease for so long is gone: others may have the ledger."
    )
    connections_max: int = Field(
        4, ge=2, description="Connections of one process to PostgreSQL for reads; one more writes, one more listens."
    )
    answer_s_max: float = Field(
        10.0, gt=0, description="Longest that PostgreSQL may take to answer; then its connection is given up."
    )
    stall_s_max: float = Field(
        5.0, gt=0, description="Longest that a process may stop in mid-transaction before PostgreSQL ends that."
    )
    outage_wait_s: float = Field(
        10.0, ge=0, description="How long calls wait for a PostgreSQL that is gone: longer than a restart takes."
    )
    look_every_s: float = Field(
        1.0, gt=0, description="How often whoever waits for changes looks, where PostgreSQL's notification got lost."
    )
    body_bytes_max: int = Field(
        8 * _MIB, gt=0, description="Largest body of one entry, payload, result or state: larger belongs in a store."
    )
    call_writes_max: int = Field(
        10_000, gt=0, description="Most writes of one call; it is one transaction, and others wait for it."
    )
    batch_writes_max: int = Field(
        4_000, gt=0, description="Writes after which a group commit takes no further call: about 40 ms of work."
    )
    queue_writes_max: int = Field(
        50_000, gt=0, description="Most writes that wait for the writer: under a second of work, then callers back off."
    )
    queue_bytes_max: int = Field(
        256 * _MIB, gt=0, description="Most bytes that wait for the writer: what the process can spare."
    )
    queue_reads_max: int = Field(
        10_000, gt=0, description="Most reads that wait for the reader: about a second of work."
    )
    waiters_max: int = Field(1_000, gt=0, description="Most calls of `changes` that wait at once: each is a task.")
    read_rows_max: int = Field(10_000, gt=0, description="Most rows of one answer, whatever limit the caller names.")
    retry_after_s: float = Field(0.2, gt=0, description="When a refused caller should come back, in seconds.")
    goals_cached_max: int = Field(
        20_000, gt=0, description="Goals whose standing the writer remembers, about 1 KiB each."
    )
    steps_cached_max: int = Field(
        500_000, gt=0, description="Step keys that the writer remembers over all goals, about 100 bytes each."
    )
    agents_cached_max: int = Field(
        100_000, gt=0, description="Agents whose state version the writer remembers, about 300 bytes each."
    )
    file_bytes_max: int = Field(
        64 * 1024 * _MIB, ge=_MIB, description="Size at which the file is full: a refusal before the disk is."
    )
    busy_timeout_s: float = Field(
        1.0, ge=0, description="How long a write waits for a lock that a tool outside Nexus holds on the file."
    )

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if url and (parts.scheme not in ("postgresql", "postgres") or not parts.path.strip("/")):
            raise ValueError("write postgresql://USER@HOST/DATABASE, or nothing for the embedded ledger")
        named = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
        if parts.password is not None or any(name.lower().endswith("password") for name in named):
            raise ValueError(
                "it holds a password, and settings travel in clear: write the password to a file of mode 0600 and "
                "name that in ledger.password_file (NEXUS_LEDGER__PASSWORD_FILE)"
            )
        return url


def check_goals(goals: Sequence[Goal], settings: LedgerSettings) -> int:
    """Refuse goals that no ledger may keep; return their bytes.

    Raises:
        InvalidArgumentError: Too many, an empty or too long id, what is not text, or a payload over the limit.
    """
    _check_count(len(goals), settings)
    size_bytes = 0
    for goal in goals:
        _check_id(goal.id, "goal id")
        for text in (goal.type, goal.tenant, goal.principal, goal.idempotency_key, goal.parent):
            _check_text(text)
        _check_body(goal.payload, settings)
        size_bytes += len(goal.payload)
    return size_bytes


def check_writes(writes: Sequence[Write], settings: LedgerSettings) -> int:
    """Refuse writes that no ledger may keep; return their bytes.

    Raises:
        InvalidArgumentError: Too many, a body over the limit, a step without a key, a note that pretends to be
            another kind of entry, an outcome that is not terminal, or a cancel request of nobody.
    """
    _check_count(len(writes), settings)
    size_bytes = 0
    for write in writes:
        match write:
            case Step(step_key=step_key, body=body, state=state, kind=kind):
                if kind not in KEYED:
                    raise InvalidArgumentError("what is recorded under a key is of a kind that has one", kind=str(kind))
                _check_id(step_key, "step key")
                _check_body(body, settings)
                size_bytes += len(body)
                if state is not None:
                    _check_text(state.agent.type)
                    _check_text(state.agent.key)
                    _check_body(state.body, settings)
                    size_bytes += len(state.body)
            case Note(body=body, kind=kind):
                if kind not in (EntryKind.NOTE, EntryKind.PLANNED):
                    raise InvalidArgumentError("a note is a plan or progress, nothing else", kind=str(kind))
                _check_body(body, settings)
                size_bytes += len(body)
            case Finish(outcome=outcome):
                if not outcome.status.is_terminal:
                    raise InvalidArgumentError("an outcome is terminal", status=str(outcome.status))
                _check_body(outcome.result, settings)
                size_bytes += len(outcome.result)
            case RequestCancel(by=by):
                _check_id(by, "name of who cancels")
    return size_bytes


def _check_count(count: int, settings: LedgerSettings) -> None:
    if count > settings.call_writes_max:
        raise InvalidArgumentError("too many writes in one call", writes=count, writes_max=settings.call_writes_max)


def _check_body(body: bytes, settings: LedgerSettings) -> None:
    if len(body) > settings.body_bytes_max:
        raise InvalidArgumentError(
            f"a body of {len(body)} bytes is over the limit of {settings.body_bytes_max}",
            body_bytes=len(body),
            body_bytes_max=settings.body_bytes_max,
        )


def _check_id(text: str, what: str) -> None:
    if not 0 < len(text) <= _ID_CHARACTERS_MAX:
        raise InvalidArgumentError(f"a {what} has 1 to {_ID_CHARACTERS_MAX} characters", characters=len(text))
    _check_text(text)


def _check_text(text: str) -> None:
    # NUL ends a text in SQLite's JSON and is refused by PostgreSQL; half a surrogate pair is no Unicode at all.
    if "\0" in text or not (text.isascii() or _is_unicode(text)):
        raise InvalidArgumentError("a name in the ledger is Unicode text without NUL")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
