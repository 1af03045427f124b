"""Writes docs/reference/ from the code: `make docs`.

Law: a page holds nothing that is not in the code, and is the same on every machine; a test compares it with the
committed one.
"""

import ast
import inspect
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from nexus_ray.api.app import build_app
from nexus_ray.api.openapi import document
from nexus_ray.api.problems import status_of
from nexus_ray.cli.entry import app as verbs
from nexus_ray.cli.exits import ExitCode, error_exit_code, status_exit_code
from nexus_ray.config import OTHER_VARIABLES, RuntimeSettings, Settings
from nexus_ray.core.errors import error_classes
from nexus_ray.ledger.goal import GoalStatus
from nexus_ray.observe.catalogue import METRICS
from nexus_ray.security.authz import ensure_role_file, load_roles
from nexus_ray.security.policy import ACTIONS

FOLDER = Path(__file__).resolve().parent / "reference"
_MIB = 1024 * 1024
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
_KINDS = {str: "TEXT", int: "NUMBER", float: "NUMBER", Path: "PATH"}
_EXITS = {
    ExitCode.OK: "done; for a goal that was waited for, that it succeeded or goes on",
    ExitCode.FAILED: "the goal failed, a check of `nexus doctor` did, or something went wrong inside",
    ExitCode.WRONG_INPUT: "wrong usage or input, or not in a state for this",
    ExitCode.NOT_ALLOWED: "no valid token, or its roles do not allow it",
    ExitCode.UNAVAILABLE: "no fleet is up, or it does not answer now; safe to try again",
    ExitCode.CANCELLED: "the goal was cancelled, or its deadline passed",
    ExitCode.INTERRUPTED: "Ctrl-C",
}


def pages() -> dict[str, str]:
    """Return the text of every page by its file name."""
    found = {
        "cli.md": _cli(),
        "errors.md": _errors(),
        "http.md": _http(),
        "metrics.md": _metrics(),
        "settings.md": _settings(),
    }
    return {name: f"{text.rstrip()}\n" for name, text in found.items()}


def _page(title: str, *parts: str) -> str:
    note = "<!-- Written by docs/generate.py (`make docs`); change the code, not this page. -->"
    return "\n\n".join([f"# {title}", note, *(part for part in parts if part)])


def _table(columns: list[str], rows: list[list[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def _first_line(text: str | None) -> str:
    """Return the first paragraph of a docstring, on one line."""
    return " ".join(inspect.cleandoc(text or "").partition("\n\n")[0].split())


def _code(text: Any) -> str:
    return f"`{text}`" if str(text) else ""


# Settings


def _settings() -> str:
    top, parts = [], []
    for name, field in Settings.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            rows = _setting_rows(section, f"{name}.", f"NEXUS_{name.upper()}__")
            parts.append(f"## {name}\n\n{_first_line(section.__doc__)}\n\n{_table(_SETTING_COLUMNS, rows)}")
            parts += _named_parts(section, name)
        else:
            top += _setting_rows(Settings, "", "NEXUS_", only=name)
    others = [[_code(name), text] for name, text in OTHER_VARIABLES.items()]
    return _page(
        "Settings",
        "A setting comes from the command line, else from the environment, else from a TOML file (`nexus up --config "
        "FILE`, or `NEXUS_CONFIG`), else from its default. A variable or a field that is not in these tables is "
        "refused, so a misspelt one is never ignored. An empty variable is none. Names end in their unit: `_s` is "
        "seconds, `_bytes_max` bytes.",
        _table(_SETTING_COLUMNS, top),
        *parts,
        f"## Other variables\n\n{_table(['variable', 'what it is for'], others)}",
    )


def _named_parts(section: type[BaseModel], name: str) -> list[str]:
    """Return a table for each setting that is a mapping of names of the user's own to parts of one kind."""
    found = []
    for inner, field in section.model_fields.items():
        kinds = get_args(field.annotation)
        if len(kinds) == 2 and isinstance(kinds[1], type) and issubclass(kinds[1], BaseModel):
            place = f"{name}.{inner}.NAME"
            rows = [row[:1] + row[2:] for row in _setting_rows(kinds[1], f"{place}.", "")]
            columns = _SETTING_COLUMNS[:1] + _SETTING_COLUMNS[2:]
            parts = f"{_first_line(kinds[1].__doc__)}\n\n{_table(columns, rows)}"
            found.append(f"### {place}\n\n{parts}")
    return found


_SETTING_COLUMNS = ["setting", "variable", "type", "default", "reason"]


def _setting_rows(model: type[BaseModel], prefix: str, variable: str, only: str = "") -> list[list[str]]:
    reasons = _reasons(model)
    return [
        [
            _code(f"{prefix}{name}"),
            _code(f"{variable}{name.upper()}"),
            _type(field),
            _default(name, field),
            field.description or reasons.get(name, ""),
        ]
        for name, field in model.model_fields.items()
        if not only or name == only
    ]


def _reasons(model: type[BaseModel]) -> dict[str, str]:
    """Return the text under each field of a class."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            found[field.target.id] = str(below.value.value)
    return found


def _type(field: FieldInfo) -> str:
    if get_origin(field.annotation) is dict:
        return "table by name"
    options = [kind for kind in get_args(field.annotation) or (field.annotation,) if kind is not type(None)]
    name = " or ".join(getattr(kind, "__name__", str(kind)).lower() for kind in options)
    bounds = [
        f"{sign} {_number(getattr(bound, word))}"
        for bound in field.metadata
        for word, sign in _BOUNDS.items()
        if getattr(bound, word, None) is not None
    ]
    return ", ".join([name, *bounds])


def _default(name: str, field: FieldInfo) -> str:
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "default_rule" in extra:
        return str(extra["default_rule"])
    value = field.get_default(call_default_factory=False)
    assert not field.default_factory, f"{name} depends on the machine: give it a default_rule"
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return _code(str(value).lower())
    if isinstance(value, int) and "bytes" in name and value % _MIB == 0:
        mib = value // _MIB
        return f"`{value}` ({mib} MiB)" if mib % 1024 else f"`{value}` ({mib // 1024} GiB)"
    return _code(_number(value) if isinstance(value, int | float) else value)


def _number(value: float) -> str:
    return f"{value:.10g}"


# Metrics


def _metrics() -> str:
    rows = [
        [
            _code(metric.name),
            metric.kind,
            ", ".join(map(_code, metric.labels)),
            metric.help,
            ", ".join(map(_number, metric.buckets)),
        ]
        for metric in METRICS.values()
    ]
    return _page(
        "Metrics",
        "`GET /metrics` shows the metrics of all processes of a node as Prometheus text. Durations are in seconds. "
        "Labels come from closed sets, an id is never one; a metric that grows beyond its limit of series counts the "
        "rest under `other`.",
        _table(["metric", "kind", "labels", "what it tells", "buckets"], rows),
    )


# Errors


def _errors() -> str:
    rows = [
        [
            _code(name),
            _code(cls.code),
            status_of(cls.code),
            int(error_exit_code(cls())),
            _first_line(cls.__doc__),
        ]
        for name, cls in sorted(error_classes().items(), key=lambda item: (item[1].code, item[0]))
    ]
    return _page(
        "Errors",
        "Codes are gRPC's canonical words. Over HTTP an error is a problem document (RFC 9457) with the code in "
        "`code`, the message in `detail`, and the fields that are wrong in `errors`. On the command line it is one "
        "line on stderr and an exit code.",
        _table(["class", "code", "HTTP status", "exit code", "meaning"], rows),
    )


# Command line


def _cli() -> str:
    root = typer.main.get_command(verbs)
    exits = [[int(code), meaning] for code, meaning in _EXITS.items()]
    endings = [[_code(status.value), int(status_exit_code(status.value))] for status in GoalStatus]
    return _page(
        "Command line",
        f"{root.help} Results go to stdout and everything else to stderr, so that a pipe gets the result and nothing "
        "else.",
        f"## Exit codes\n\n{_table(['code', 'meaning'], exits)}",
        "How a goal stands, as the exit code of `nexus goal submit --wait`, `--watch` and `nexus goal watch`:\n\n"
        + _table(["status", "exit code"], endings),
        *(_verb(path, command) for path, command in leaves(root)),
    )


def leaves(command: Any, path: str = "nexus") -> list[tuple[str, Any]]:
    """Return every verb of the command line with its full name."""
    inner = getattr(command, "commands", None)
    if not inner:
        return [(path, command)]
    return [leaf for name, below in inner.items() for leaf in leaves(below, f"{path} {name}")]


def _verb(path: str, command: Any) -> str:
    arguments, options = [], []
    for parameter in command.params:
        is_argument = parameter.param_type_name == "argument"
        (arguments if is_argument else options).append(parameter)
    names = [parameter.metavar or parameter.name.upper() for parameter in arguments]
    usage = " ".join([path, *(name if p.required else f"[{name}]" for name, p in zip(names, arguments, strict=True))])
    rows = [[_code(name), _text(p)] for name, p in zip(names, arguments, strict=True)]
    rows += [[_option(parameter), _text(parameter)] for parameter in options]
    table = _table(["argument or option", "meaning"], rows) if rows else ""
    return "\n\n".join(part for part in (f"## {path}", f"`{usage}`", command.help or "", table) if part)


def _option(parameter: Any) -> str:
    name = ", ".join(sorted([*parameter.opts, *parameter.secondary_opts], key=len))
    annotation = parameter.type_descriptor.annotation
    kinds = [_KINDS[kind] for kind in get_args(annotation) or (annotation,) if kind in _KINDS]
    kind = "" if parameter.is_flag else f" {parameter.metavar or kinds[0]}"
    return _code(name + kind)


def _text(parameter: Any) -> str:
    default = parameter.default
    has_default = not callable(default) and isinstance(default, str | int | float | Path) and not parameter.required
    shown = f" Default: `{default}`." if has_default and not getattr(parameter, "is_flag", False) else ""
    needed = " Required." if parameter.required and parameter.param_type_name == "option" else ""
    return f"{parameter.help or ''}{shown}{needed}"


# HTTP


def _http() -> str:
    whole = document(build_app(None, RuntimeSettings()))  # type: ignore[arg-type]
    granted = default_roles()
    overview, details = [], []
    for path, operations in whole["paths"].items():
        for method, operation in operations.items():
            action = operation.get("x-nexus-action", "")
            is_open = operation.get("security") == []
            who = ", ".join(role for role, actions in granted.items() if _is_granted(action, actions))
            name = f"{method.upper()} {path}"
            needs = "nothing" if is_open else _code(action) or "a token"
            overview.append([_code(name), needs, "everybody" if is_open else who if action else "everybody known",
                             ", ".join(sorted(operation["responses"]))])  # fmt: skip
            details.append(_operation(name, operation))
    actions = [[_code(action), *("yes" if _is_granted(action, g) else "" for g in granted.values())]
               for action in ACTIONS]  # fmt: skip
    return _page(
        "HTTP",
        whole["info"]["description"],
        "`GET /openapi.json` returns the OpenAPI document with all schemas. Send `Authorization: Bearer TOKEN`; "
        "without a valid token every path but `/health` answers with the same 401, whether there is such a path or "
        "not. What nobody foresaw is a 500 whose reason stands in the log alone. Integers beyond 64 bits are read "
        "as floating-point numbers.",
        f"## Routes\n\n{_table(['route', 'needs', 'granted to', 'statuses'], overview)}",
        f"## Actions\n\nWhat the roles of a new state folder grant (`roles.toml`):\n\n"
        f"{_table(['action', *granted], actions)}",
        *details,
    )


def default_roles() -> dict[str, frozenset[str]]:
    """Return what the roles grant that a new state folder gets."""
    with tempfile.TemporaryDirectory() as folder:
        ensure_role_file(Path(folder))
        return load_roles(Path(folder))


def _is_granted(action: str, grants: frozenset[str]) -> bool:
    return bool(action) and (action in grants or f"{action.partition(':')[0]}:*" in grants)


def _operation(name: str, operation: dict[str, Any]) -> str:
    rows = [
        [_code(p["name"]), p["in"], _schema(p["schema"]), p.get("description", "")]
        for p in operation.get("parameters", [])
    ]
    answers = [
        [status, ", ".join(map(_code, response["content"])), response["description"]]
        for status, response in sorted(operation["responses"].items())
    ]
    return "\n\n".join(
        part
        for part in (
            f"## {name}",
            operation["description"],
            _table(["parameter", "in", "type", "meaning"], rows) if rows else "",
            _table(["status", "content", "meaning"], answers),
        )
        if part
    )


def _schema(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_schema(one) for one in schema["anyOf"] if one.get("type") != "null")
    if "$ref" in schema:
        return ", ".join(_code(status.value) for status in GoalStatus)
    words = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "maxLength": "at most"}
    bounds = [f"{sign} {schema[word]:.0f}" for word, sign in words.items() if word in schema]
    return ", ".join([schema.get("type", "any"), *bounds])


def main() -> int:
    """Write the pages; with `--check`, only tell which differ."""
    texts = pages()
    stale = [
        name for name, text in texts.items() if not (FOLDER / name).exists() or (FOLDER / name).read_text() != text
    ]
    if "--check" in sys.argv[1:]:
        for name in stale:
            print(f"docs/reference/{name} is not what the code says: run `make docs`", file=sys.stderr)
        return int(bool(stale))
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in stale:
        (FOLDER / name).write_text(texts[name])
        print(f"wrote docs/reference/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
