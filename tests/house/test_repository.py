"""The repository: what it promises about itself, and what must not stand in it."""

import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from typing import Any

import pytest
import typer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from nexus_ray.cli.entry import app
from tests.house.support import PACKAGE, ROOT, imported, modules, tracked

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PIN = re.compile(r"([a-z0-9][a-z0-9.-]*)==([A-Za-z0-9.!+-]+)\Z")
# Put together here, so that this file is none of those that it looks for.
ELSEWHERE = re.compile(
    "|".join(
        [
            "/" + r"(?:work|root)/", "/" + r"home/[a-z]+/", "/" + r"tmp/(?:bash_jobs|brief)",
            "py" + r"pi\.org", "python" + r"hosted\.org", r"registry\.npm" + r"js", "crates" + r"\.io",
            r"proxy\.golang" + r"\.org", r"index-" + r"url", r"conda\." + "anaconda",
        ]
    )
)  # fmt: skip
TEXT = {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".json", ".cfg", ".ipynb", ".sh", ".html", ".css", ".js", ""}


def pins() -> dict[str, str]:
    found = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        match = PIN.match(line)
        assert match, f"constraints.txt holds names and versions and nothing else, not {line!r}"
        found[match[1]] = match[2]
    return found


def test_constraints_hold_pins_alone_in_order_and_no_address() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()

    assert lines == sorted(lines, key=lambda line: line.partition("==")[0])
    assert len(pins()) == len(lines) > 50
    assert all(name == canonicalize_name(name) for name in pins())


def declared() -> list[Requirement]:
    project = PYPROJECT["project"]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    return [Requirement(text) for text in texts if canonicalize_name(Requirement(text).name) != project["name"]]


@pytest.mark.parametrize("requirement", declared(), ids=str)
def test_every_declared_dependency_is_pinned_to_a_version_that_fits(requirement: Requirement) -> None:
    version = pins().get(canonicalize_name(requirement.name))

    assert version is not None
    assert requirement.specifier.contains(version, prereleases=True)


def test_what_the_dependencies_need_is_pinned_too() -> None:
    missing: set[str] = set()
    waiting = [(canonicalize_name(one.name), frozenset(one.extras)) for one in declared()]
    seen = set(waiting)
    while waiting:
        name, extras = waiting.pop()
        if name not in pins():
            missing.add(name)
        try:
            needed = [Requirement(text) for text in requires(name) or []]
        except PackageNotFoundError:
            continue  # For another system or version of Python.
        for one in needed:
            if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                following = (canonicalize_name(one.name), frozenset(one.extras))
                if following not in seen:
                    seen.add(following)
                    waiting.append(following)

    assert missing == set()


def test_no_file_names_a_place_of_somebodys_machine_or_a_registry() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}"
        for path in tracked()
        if path.suffix in TEXT
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if ELSEWHERE.search(line)
    ]

    assert found == []


def test_places_and_registries_are_seen() -> None:
    assert ELSEWHERE.search("see /" + "root/x") and ELSEWHERE.search("https://py" + "pi.org/simple")
    assert not ELSEWHERE.search("a root/branch, homework/1, /var/lib")


@pytest.mark.parametrize("target", ["help", "demo", "test", "lint", "bench", "docs", "clean"])
def test_make_knows_every_target_and_tells_of_it(target: str) -> None:
    text = (ROOT / "Makefile").read_text()

    assert re.search(rf"^{target}:", text, re.M)
    assert target in re.findall(r"\w+", re.search(r"^\.PHONY:(.*)$", text, re.M)[1])  # type: ignore[index]
    assert target in ("help", "clean") or f"make {target}" in text


@pytest.mark.parametrize("file", ["README.md", "LICENSE", "CHANGELOG.md", ".ci/run", "constraints.txt"])
def test_what_a_newcomer_looks_for_is_there(file: str) -> None:
    assert (ROOT / file).stat().st_size > 0


def test_the_console_script_is_there() -> None:
    module, _, function = PYPROJECT["project"]["scripts"]["nexus"].partition(":")

    assert callable(getattr(__import__(module, fromlist=[function]), function))


BLOCK = re.compile(r"```(?:console|sh|bash|shell|text)?\n(.*?)```", re.S)
INLINE = re.compile(r"`(nexus [^`\n]+)`")
COMMAND = re.compile(r"(?:^|[\s(;&|-])nexus ((?:[a-z-]+)(?: .*)?)")


def commands(text: str) -> list[str]:
    """Return what stands after `nexus` in code blocks and in code within a line."""
    lines = [line.lstrip("$ ") for block in BLOCK.findall(text) for line in block.splitlines()]
    lines = [line for line in lines if line.startswith("nexus ") or "&& nexus " in line or "-- nexus " in line]
    return [match[1] for line in [*lines, *INLINE.findall(text)] for match in COMMAND.finditer(line)]


def wrong(command: str) -> str:
    """Return what is wrong with a command, or nothing."""
    at: Any = typer.main.get_command(app)
    words = command.split("#")[0].split()
    while words and getattr(at, "commands", None):
        word = words.pop(0)
        if not re.fullmatch(r"[a-z-]+", word):
            return ""  # `nexus goal …` of a whole group
        if word not in at.commands:
            return f"there is no verb {word!r} in: nexus {command}"
        at = at.commands[word]
    known = {"--help", *(option for parameter in at.params for option in parameter.opts)}
    options = [word.partition("=")[0].rstrip("`.,;)") for word in words if re.match(r"--?[a-z]", word)]
    return next((f"there is no option {one} in: nexus {command}" for one in options if one not in known), "")


def pages() -> list[Path]:
    return [path for path in tracked() if path.suffix == ".md" and path.name != "CHANGELOG.md"]


@pytest.mark.parametrize("page", pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_of_a_page_is_one_that_nexus_knows(page: Path) -> None:
    assert [wrong(command) for command in commands(page.read_text(encoding="utf-8")) if wrong(command)] == []


def test_commands_are_seen_and_wrong_ones_told() -> None:
    text = (
        "```console\n$ nexus goal submit audit '{}' --watch\n$ ray job submit -- nexus fly\n```\nthen `nexus goal lost`"
    )

    assert [bool(wrong(command)) for command in commands(text)] == [False, True, True]
    assert wrong("status --loud") and not wrong("up my:app --port 1 -d")


# What comes with a declared dependency and is meant to be used beside it.
BROUGHT = {"starlette": "fastapi", "pydantic-core": "pydantic", "opentelemetry-sdk": "ray", "opentelemetry-api": "ray"}


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    owners = packages_distributions()
    project = PYPROJECT["project"]
    runtime = {canonicalize_name(Requirement(text).name) for text in project["dependencies"]}
    optional = {canonicalize_name(one.name) for one in declared()} - runtime
    tops = {name.partition(".")[0] for path in modules().values() for name in imported(path)} - {"nexus_ray"}
    others = {top: {canonicalize_name(name) for name in owners.get(top, [])} for top in tops - sys.stdlib_module_names}

    unknown = {top for top, names in others.items() if not names & (runtime | optional | set(BROUGHT))}
    unused = runtime - {name for names in others.values() for name in names}

    assert unknown == set()
    assert unused == set()


# A path in the documentation: from the root, or from the package, where most of them are about.
NAMED = re.compile(
    r"`((?:[a-z_0-9]+/)+[A-Za-z_0-9]+\.(?:py|rego|yaml|toml|md)|(?:tests|examples|benchmarks)/[a-z_/0-9]*)`"
)


def test_every_file_that_the_documentation_names_is_there() -> None:
    pages = [path for path in tracked() if path.suffix == ".md" and path.name != "CHANGELOG.md"]
    named = {(path.name, found) for path in pages for found in NAMED.findall(path.read_text(encoding="utf-8"))}

    missing = {one for one in named if not (ROOT / one[1]).exists() and not (PACKAGE / one[1]).exists()}
    assert len(named) > 50 and missing == set()
