"""A real OpenLDAP on a private loopback port, over TLS only."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

_PATH = "/usr/sbin:/usr/local/sbin:/usr/libexec:/usr/lib/openldap:" + os.environ.get("PATH", "")
_ENTRIES = """\
dn: dc=example
objectClass: dcObject
objectClass: organization
o: Example
dc: example

dn: ou=people,dc=example
objectClass: organizationalUnit
ou: people

dn: ou=groups,dc=example
objectClass: organizationalUnit
ou: groups

dn: cn=search,dc=example
objectClass: organizationalRole
objectClass: simpleSecurityObject
cn: search
userPassword: looking
"""


def need_programs() -> None:
    """Skip where there is none; on a build machine its absence is a failure."""
    if shutil.which("slapd", path=_PATH) is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("there is no slapd here: apt install slapd")


def person(uid: str, password: str) -> str:
    return (
        f"\ndn: uid={uid},ou=people,dc=example\nobjectClass: inetOrgPerson\nuid: {uid}\ncn: {uid}\nsn: {uid}\n"
        f"userPassword: {password}\n"
    )


def group(cn: str, *members: str) -> str:
    lines = "".join(f"member: uid={uid},ou=people,dc=example\n" for uid in members)
    return f"\ndn: cn={cn},ou=groups,dc=example\nobjectClass: groupOfNames\ncn: {cn}\n{lines}"


class Slapd:
    """One server."""

    def __init__(self, authority: Path, certificate: tuple[Path, Path], entries: str = "") -> None:
        need_programs()
        self.folder = Path(tempfile.mkdtemp(prefix="nexus-slapd-"))
        (self.folder / "data").mkdir()
        lines = [f"include /etc/ldap/schema/{name}.schema" for name in ("core", "cosine", "inetorgperson")]
        lines += [
            f"pidfile {self.folder}/pid", "modulepath /usr/lib/ldap", "moduleload back_mdb", "loglevel 0", "threads 2",
            f"TLSCACertificateFile {authority}", f"TLSCertificateFile {certificate[0]}",
            f"TLSCertificateKeyFile {certificate[1]}", "database mdb", "maxsize 10485760", "suffix dc=example",
            f"directory {self.folder}/data", "dbnosync", "access to attrs=userPassword by anonymous auth by * none",
            'access to * by dn.exact="cn=search,dc=example" read by users read by * none',
        ]  # fmt: skip
        config = self.folder / "slapd.conf"
        config.write_text("\n".join(lines) + "\n")
        if entries:
            subprocess.run(
                [shutil.which("slapadd", path=_PATH) or "slapadd", "-q", "-f", str(config)],
                input=(_ENTRIES + entries).encode(), check=True, capture_output=True,
            )  # fmt: skip
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        with open(self.folder / "log", "wb") as out:
            self.process = subprocess.Popen(
                [shutil.which("slapd", path=_PATH) or "slapd", "-f", str(config), "-h", self.url, "-d", "0"],
                stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        self._until_up()

    @property
    def url(self) -> str:
        return f"ldaps://127.0.0.1:{self.port}"

    def _until_up(self, within_s: float = 20.0) -> None:
        ends_at = time.monotonic() + within_s
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1.0).close()
                return
            except OSError as error:
                said = (self.folder / "log").read_text()[-2000:]
                assert time.monotonic() < ends_at and self.process.poll() is None, (error, said)
                time.sleep(0.01)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def close(self) -> None:
        self.process.kill()
        self.process.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)
