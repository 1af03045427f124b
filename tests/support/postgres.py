"""A real PostgreSQL on a private loopback port, and empty ledgers in it; started by whoever first asks for it."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg
import pytest

from nexus_ray.ledger.limits import LedgerSettings
from nexus_ray.ledger.postgres_migrate import migrate

_TABLES = ("journal", "goals", "agent_states", "fenced", "writers")


def programs() -> Path | None:
    """Return the folder with the newest `initdb` of this machine; Debian does not put it in the path."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    return folders[-1] if folders else None


def need_programs() -> Path:
    """Return it, or skip; on a build machine its absence is a failure."""
    folder = programs()
    if folder is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("there is no PostgreSQL here: apt install postgresql")
    return folder


class Server:
    """One server and its databases."""

    def __init__(self) -> None:
        self._programs = need_programs()
        # Not pytest's folder: that is closed to the user that the server runs as.
        self.folder = Path(tempfile.mkdtemp(prefix="nexus-postgres-"))
        # `initdb` refuses root.
        self._as_user: list[str] = []
        if os.geteuid() == 0:
            self._as_user = ["setpriv", "--reuid=nobody", "--clear-groups"]
        self.own(self.folder)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.process: subprocess.Popen[bytes] | None = None
        self._databases = 0
        self._free: list[str] = []
        self._run("initdb", "-D", "data", "-U", "nexus", "-A", "trust", "--no-sync", "--no-instructions",
                  "-E", "UTF8", "--locale=C")  # fmt: skip
        access = self.folder / "data" / "pg_hba.conf"
        access.write_text(f"host all stranger 127.0.0.1/32 scram-sha-256\n{access.read_text()}")

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [*self._as_user, str(self._programs / program), *arguments], cwd=self.folder, check=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip

    def own(self, folder: Path) -> None:
        """Give a folder to the user that the server runs as."""
        if self._as_user:
            shutil.chown(folder, "nobody")
        folder.chmod(0o700)

    def start(self, **options: str) -> None:
        """Start it, and return when it answers."""
        given = {"listen_addresses": "127.0.0.1", "port": str(self.port), "unix_socket_directories": "",
                 "shared_buffers": "16MB", "max_connections": "60", "autovacuum": "off", **options}  # fmt: skip
        flags = [flag for name, value in given.items() for flag in ("-c", f"{name}={value}")]
        self._launch(flags)
        self._until_up(flags)

    def _launch(self, flags: list[str]) -> None:
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                [*self._as_user, str(self._programs / "postgres"), "-D", "data", *flags],
                cwd=self.folder, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def _until_up(self, flags: list[str], within_s: float = 20.0) -> None:
        ends_at = time.monotonic() + within_s
        while True:
            try:
                with psycopg.connect(f"{self.url('postgres')}?connect_timeout=2"):
                    return
            except psycopg.OperationalError as error:
                assert time.monotonic() < ends_at, (error, (self.folder / "log").read_text()[-2000:])
                time.sleep(0.02)
                if self.process is not None and self.process.poll() is not None:
                    self._launch(flags)  # A child of one that crashed had not noticed yet, and held the memory.

    def stop(self, number: int = signal.SIGINT) -> None:
        """End it: SIGINT hangs up on everybody, SIGKILL is a crash. Its children notice a crash by themselves."""
        process, self.process = self.process, None
        if process is None:
            return
        children = [] if number != signal.SIGKILL else self._children(process.pid)
        process.send_signal(number)
        process.wait(20)
        for child in children:
            # The next start refuses as long as one of them has the shared memory.
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)

    def _children(self, pid: int) -> list[int]:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    @contextlib.contextmanager
    def stalled(self):  # type: ignore[no-untyped-def]
        """SIGSTOP for all of its processes, and SIGCONT in the end."""
        assert self.process is not None
        pids = [self.process.pid, *self._children(self.process.pid)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def url(self, database: str, user: str = "nexus") -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def sql(self, text: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run a statement as the owner of everything."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(text)
            return cursor.fetchall() if cursor.description else []

    def empty_database(self) -> str:
        """Return the name of a new database without a ledger."""
        self._databases += 1
        name = f"ledger_{self._databases}"
        self.sql(f"CREATE DATABASE {name}")
        return name

    def ledger(self) -> str:
        """Return the name of a database with an empty ledger; give it back by `give_back`."""
        if self._free:
            return self._free.pop()
        name = self.empty_database()
        migrate(LedgerSettings(url=self.url(name)))
        return name

    def give_back(self, name: str) -> None:
        """Empty a ledger for the next test: much faster than another database."""
        deletes = "; ".join(f"DELETE FROM nexus.{table}" for table in _TABLES)
        self.sql(
            f"BEGIN; {deletes}; UPDATE nexus.head SET seq = 0, epoch = 0, fences = 0, lease_holder = '',"
            " lease_until = '-infinity'; COMMIT",
            name,
        )
        self._free.append(name)

    def close(self) -> None:
        self.stop(signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)


class Proxy:
    """Stands before a server and loses the answer to a commit, or the commit itself, once for each `lose`."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._losing = ""
        self.lost = 0
        self._writers: list[asyncio.StreamWriter] = []

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        self._server.close()
        self.hang_up()

    def lose(self, what: str) -> None:
        """Lose the next `answer` or `call`; connections begin anew, because only their first commit is told by name."""
        self._losing = what
        self.hang_up()

    def hang_up(self) -> None:
        for writer in self._writers:
            writer.close()
        self._writers.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers += (writer, there_writer)
        answering = asyncio.ensure_future(self._copy(there_reader, writer))
        with contextlib.suppress(OSError):
            while chunk := await reader.read(1 << 16):
                if self._losing and b"COMMIT\0" in chunk:
                    losing, self._losing = self._losing, ""
                    self.lost += 1
                    answering.cancel()
                    if losing == "answer":
                        there_writer.write(chunk)
                        await there_reader.read(1)  # It has been carried out.
                    break
                there_writer.write(chunk)
        writer.close()
        there_writer.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(1 << 16):
                writer.write(chunk)
        writer.close()


async def until(is_so, within_s: float = 10.0) -> None:  # type: ignore[no-untyped-def]
    """Look until something is so."""
    async with asyncio.timeout(within_s):
        while not is_so():
            await asyncio.sleep(0.01)
