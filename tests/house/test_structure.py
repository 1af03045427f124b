"""The house tidies itself: floors, lengths, names, and no room that nobody enters."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

from tests.house.support import PACKAGE, ROOT, imported, modules, tree

FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70
FORBIDDEN = {"manager", "handler", "helper", "util", "common", "misc", "data", "info"}
GIVEN = {"DataLossError", "data_received"}  # A canonical word of gRPC, a method of asyncio.Protocol.
# What is called from outside by its name: the console script, `python -m`, `serve deploy` and Ray Serve's proxy.
MIGRATIONS = "nexus_ray.ledger.migrations."  # What alembic looks for in a folder.
ENTRANCES = {"nexus_ray", "nexus_ray.cli.__main__", "nexus_ray.cli.entry", "nexus_ray.api.ingress"}
# Twins of a real part, held to its contract, for tests of those who build fleets and for ours.
TWINS = {"nexus_ray.ledger.memory"}

MODULES = pytest.mark.parametrize("name", modules())


def test_every_package_imports_only_downwards(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(ROOT)

    code = lint_imports(config_filename="pyproject.toml", no_cache=True)

    assert code == 0, capsys.readouterr().out


@MODULES
def test_a_file_ends_before_its_limit(name: str) -> None:
    lines = len(modules()[name].read_text(encoding="utf-8").splitlines())

    assert lines < FILE_LINES_MAX


@MODULES
def test_a_function_ends_before_its_limit(name: str) -> None:
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1}"
        for node in ast.walk(tree(modules()[name]))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 >= FUNCTION_LINES_MAX
    ]

    assert long == []


def words(name: str) -> set[str]:
    found = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    return {word.lower() for word in found} | {word.lower().removesuffix("s") for word in found}


def names(path: Path) -> set[str]:
    found = {path.stem}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
    return found


@MODULES
def test_no_name_has_a_word_that_says_nothing(name: str) -> None:
    assert [found for found in sorted(names(modules()[name]) - GIVEN) if words(found) & FORBIDDEN] == []


def test_words_of_a_name_are_seen_in_every_spelling() -> None:
    assert all(words(name) & FORBIDDEN for name in ("GoalManager", "http_handlers", "INFO", "_data", "json_utils"))
    assert not any(words(name) & FORBIDDEN for name in ("metadata", "commonly", "handle", "utility", "information"))


def test_no_module_is_there_that_nothing_imports() -> None:
    used = {name for path in modules().values() for name in imported(path)}
    rooms = {name for name, path in modules().items()
             if path.name != "__init__.py" and not name.startswith(MIGRATIONS)}  # fmt: skip

    assert rooms - used - ENTRANCES - TWINS == set()
    tested = {name for path in (ROOT / "tests").rglob("*.py") for name in imported(path)}
    assert tested >= TWINS


def test_no_package_is_empty() -> None:
    packages = {path.parent for path in modules().values() if path.name == "__init__.py"}

    assert all(len(list(package.glob("*.py"))) > 1 for package in packages)


@MODULES
def test_a_module_says_what_it_is_for(name: str) -> None:
    assert ast.get_docstring(tree(modules()[name]))


def test_a_package_holds_its_law_and_no_code() -> None:
    inits = [path for path in modules().values() if path.name == "__init__.py" and path.parent != PACKAGE]

    for path in inits:
        assert len(tree(path).body) == 1 and ast.get_docstring(tree(path)), path
    assert len(inits) >= 9


def loaded_by(code: str) -> set[str]:
    script = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    return set(json.loads(done.stdout))


def test_what_users_import_loads_neither_ray_nor_http() -> None:
    code = "import nexus_ray\nfor name in nexus_ray.__all__:\n    getattr(nexus_ray, name)"

    assert not loaded_by(code) & {"ray", "fastapi", "starlette", "uvicorn"}
    assert "ray" not in loaded_by("import nexus_ray.runtime.front, nexus_ray.api.app, nexus_ray.cli.entry")


def test_importing_the_package_alone_loads_next_to_nothing() -> None:
    assert {name for name in loaded_by("import nexus_ray") if name.startswith("nexus_ray.")} <= {
        "nexus_ray.agents", "nexus_ray.core", "nexus_ray.core.errors",
    }  # fmt: skip


def test_what_users_import_is_there() -> None:
    import nexus_ray

    assert {"App", "Agent", "Task", "Team", "connect", "NexusError"} <= set(nexus_ray.__all__)
    with pytest.raises(AttributeError):
        nexus_ray.not_there  # noqa: B018
