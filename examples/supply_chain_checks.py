"""What the reviewed sources do: pure functions from the text of one file to its findings.

Law: nothing that is reviewed is ever imported or run, and nothing here fails on what a file holds: a file that cannot
be read is an answer too. It finds what a person should look at; it does not prove that anything is wrong, or right.
"""

import ast
import io
import re
import tokenize
import warnings
from collections.abc import Iterator
from typing import Literal, NamedTuple

from pydantic import BaseModel

Severity = Literal["high", "medium", "low"]

CODE_CHARACTERS_MAX = 140  # A source line as it is shown; minified ones go on for megabytes.


class Rule(NamedTuple):
    """A rule: how much it weighs, and what it means to the reader of the report."""

    severity: Severity
    meaning: str


RULES = {
    "dynamic-code": Rule("high", "builds code from text and runs it"),
    "shell": Rule("high", "runs a command through a shell"),
    "unsafe-load": Rule("high", "unpickles or unmarshals: loading can run code"),
    "unsafe-yaml": Rule("high", "loads YAML with a loader that can build any object"),
    "no-tls-check": Rule("high", "switches the check of TLS certificates off"),
    "startup-code": Rule("high", "runs each time that Python starts"),
    "hidden-text": Rule("high", "holds characters that make code read differently than it runs"),
    "subprocess": Rule("medium", "starts other programs"),
    "blocking-in-async": Rule("medium", "blocks the event loop inside an async function"),
    "copyleft": Rule("medium", "its licence has conditions for what ships with it"),
    "socket": Rule("low", "opens network sockets itself"),
    "no-licence": Rule("low", "says nothing about its licence"),
}


class Finding(BaseModel):
    """One place to look at. `literal` tells that all arguments of the call are constants."""

    rule: str
    severity: Severity
    file: str
    line: int
    code: str
    literal: bool = False


_CALLS = {
    **dict.fromkeys(("eval", "exec", "compile", "builtins.eval", "builtins.exec", "builtins.compile"), "dynamic-code"),
    **dict.fromkeys(
        ("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput",
         "asyncio.create_subprocess_shell", "asyncio.subprocess.create_subprocess_shell"), "shell",
    ),
    **dict.fromkeys(
        ("pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "cloudpickle.loads", "dill.load",
         "dill.loads", "marshal.load", "marshal.loads", "shelve.open", "joblib.load"), "unsafe-load",
    ),
    **dict.fromkeys(("yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.UnsafeLoader"), "unsafe-yaml"),
    "ssl._create_unverified_context": "no-tls-check",
    **dict.fromkeys(
        ("subprocess.run", "subprocess.call", "subprocess.check_call", "subprocess.check_output", "subprocess.Popen",
         "asyncio.create_subprocess_exec", "os.execv", "os.execve", "os.execvp", "os.execvpe", "os.execl", "os.execlp",
         "os.spawnv", "os.spawnve", "os.spawnvp", "os.posix_spawn", "os.startfile", "pty.spawn"), "subprocess",
    ),
    **dict.fromkeys(("socket.socket", "socket.create_connection", "socket.create_server"), "socket"),
}  # fmt: skip
_BLOCKING = {
    "time.sleep", "open", "input", "os.system", "urllib.request.urlopen", "subprocess.run", "subprocess.call",
    "subprocess.check_call", "subprocess.check_output", "socket.create_connection", "shutil.rmtree", "shutil.copytree",
    *(f"{client}.{verb}" for client in ("requests", "httpx")
      for verb in ("get", "post", "put", "patch", "delete", "head", "options", "request")),
}  # fmt: skip
_SAFE_LOADERS = ("SafeLoader", "CSafeLoader", "BaseLoader", "CBaseLoader")
_EVERYWHERE = ("os", "asyncio", "builtins", "ssl")  # Modules too common to tell anything.
# What a file must hold to break a rule about calls: the module, or the function of a common one. A file without any
# of these words is not parsed, which spares a third of all the work.
_WORDS = re.compile(
    b"|".join(
        rf"\b{word}\b".encode()
        for word in sorted(
            {
                name.rpartition(".")[2] if name.partition(".")[0] in _EVERYWHERE else name.partition(".")[0]
                for name in _CALLS
            }
            | {"yaml", "verify", "async"}
        )
    )
)
# Bidirectional overrides and isolates: "Trojan Source", CVE-2021-42574.
_HIDDEN = re.compile("[\u202a-\u202e\u2066-\u2069]")
_COPYLEFT = re.compile(r"\b(?:A?GPL|GNU (?:Affero )?General Public)", re.IGNORECASE)


def check_source(source: bytes, file: str) -> list[Finding]:
    """Return what a Python file does that a person should look at, by line.

    A file that holds none of the words which a rule about calls goes by is not parsed: it can break none of them.

    Raises:
        ValueError: It is no Python that this interpreter reads; the message says where.
    """
    text = _text(source)
    lines = text.split("\n")
    found: dict[tuple[str, int], bool] = {}
    if _HIDDEN.search(text):
        found = {("hidden-text", number): False for number, line in enumerate(lines, 1) if _HIDDEN.search(line)}
    if _WORDS.search(source):
        for rule, number, is_literal in _calls(_tree(text)):
            found[rule, number] = is_literal and found.get((rule, number), True)
    return [
        finding(rule, file, number, lines[number - 1] if number <= len(lines) else "", literal)
        for (rule, number), literal in sorted(found.items(), key=lambda item: (item[0][1], item[0][0]))
    ]


def _text(source: bytes) -> str:
    encoding = "utf-8"
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(source).readline)
        return io.TextIOWrapper(io.BytesIO(source), encoding).read()
    except UnicodeDecodeError as error:
        raise ValueError(f"not {error.encoding} text at byte {error.start}") from None
    except SyntaxError as error:
        raise ValueError(shown(error.msg)) from None
    except LookupError:
        raise ValueError(f"its encoding {shown(encoding, 40)} is not one of text") from None


def _tree(text: str) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Old escapes in a reviewed file are no concern of whoever reviews.
            return ast.parse(text)
    except SyntaxError as error:
        raise ValueError(f"{shown(error.msg)} (line {error.lineno or 1})") from None
    except (RecursionError, MemoryError):
        raise ValueError("nested too deeply to read") from None


def check_startup(text: str, file: str) -> list[Finding]:
    """Return the lines of a `.pth` file that Python runs each time it starts."""
    return [
        finding("startup-code", file, number, line)
        for number, line in enumerate(text.splitlines(), 1)
        if line.startswith(("import ", "import\t"))
    ]


def check_licence(licence: str, file: str) -> list[Finding]:
    """Return what a distribution's licence asks a person to do."""
    if not licence:
        return [finding("no-licence", file, 1, "no licence in the metadata")]
    return [finding("copyleft", file, 1, licence)] if _COPYLEFT.search(licence) else []


def finding(rule: str, file: str, line: int, code: str, literal: bool = False) -> Finding:
    """Return a finding whose texts are fit to be shown."""
    return Finding(
        rule=rule, severity=RULES[rule].severity, file=shown(file, 300), line=line, code=shown(code.strip()),
        literal=literal,
    )  # fmt: skip


def shown(text: str, characters_max: int = CODE_CHARACTERS_MAX) -> str:
    """Return a text on one line in which nothing is hidden: what does not print is written as its escape."""
    text = text[: characters_max + 1].replace("\t", "    ")
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return plain if len(plain) <= characters_max else plain[: characters_max - 1] + "…"


def _calls(tree: ast.Module) -> Iterator[tuple[str, int, bool]]:
    """Yield rule, line and whether all arguments are literal, for each call that breaks a rule."""
    nodes = list(_walk(tree))
    names = _names(tree, nodes)
    for node, is_async in nodes:
        if not isinstance(node, ast.Call):
            continue
        name = _dotted(node.func, names)
        is_literal = all(isinstance(value, ast.Constant) for value in [*node.args, *(k.value for k in node.keywords)])
        rule = _CALLS.get(name)
        if name in ("yaml.load", "yaml.load_all") and not _has_safe_loader(node):
            rule = "unsafe-yaml"
        if rule == "subprocess" and _keyword(node, "shell") is True:
            rule = "shell"
        if rule is not None:
            yield rule, node.lineno, is_literal
        if is_async and name in _BLOCKING:
            yield "blocking-in-async", node.lineno, is_literal
        if _keyword(node, "verify") is False:
            yield "no-tls-check", node.lineno, is_literal


def _walk(tree: ast.Module) -> Iterator[tuple[ast.AST, bool]]:
    """Yield every node, and whether its code runs on an event loop: inside `async def`, not in a `def` therein."""
    waiting: list[tuple[ast.AST, bool]] = [(tree, False)]
    while waiting:
        node, is_async = waiting.pop()
        yield node, is_async
        for name in node._fields:
            child = getattr(node, name)
            if isinstance(child, ast.AST):
                children: list[ast.AST] = [child]
            elif isinstance(child, list):
                children = child
            else:
                continue
            # Decorators and defaults run where the function is defined, its body where it is called.
            if name == "body" and isinstance(node, ast.AsyncFunctionDef):
                inside = True
            elif name == "body" and isinstance(node, ast.FunctionDef | ast.Lambda):
                inside = False
            else:
                inside = is_async
            waiting.extend((item, inside) for item in children if isinstance(item, ast.AST))


def _names(tree: ast.Module, nodes: list[tuple[ast.AST, bool]]) -> dict[str, str]:
    """Return what the names of a module stand for, as far as its imports and its own functions tell."""
    names: dict[str, str] = {}
    for node, _ in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                head = alias.name.partition(".")[0]
                names[alias.asname or head] = alias.name if alias.asname else head
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names[alias.asname or alias.name] = f"{'.' * node.level}{node.module or ''}.{alias.name}"
    for statement in tree.body:
        # Only at the top of a module: a method called `eval` does not hide the builtin.
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.setdefault(statement.name, f".{statement.name}")
    return names


def _dotted(node: ast.expr, names: dict[str, str]) -> str:
    """Return the full name of what is called, or an empty text where it has none."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    return ".".join([names.get(node.id, node.id), *reversed(parts)])


def _has_safe_loader(call: ast.Call) -> bool:
    loaders = [keyword.value for keyword in call.keywords if keyword.arg == "Loader"] or call.args[1:2]
    names = [loader.attr if isinstance(loader, ast.Attribute) else getattr(loader, "id", "") for loader in loaders]
    return any(name in _SAFE_LOADERS for name in names)


def _keyword(call: ast.Call, name: str) -> object:
    for keyword in call.keywords:
        if keyword.arg == name and isinstance(keyword.value, ast.Constant):
            return keyword.value.value
    return None
