"""Rego in this process: `regopy`, which is dangerous bare, behind a guard.

Law: only the exact text of a yes is a yes. A module that names a built-in outside the list is refused at load, for a
missing one would be true where it is negated; no text that could end a string goes in; whatever else happens is no.
"""

import json
import re
import threading
import time
from importlib import resources
from typing import Any

from nexus_ray.core.errors import InvalidArgumentError
from nexus_ray.security.policy import REASONS, Decision, Policy, PolicyRequest, facts

ENTRYPOINT = "nexus/authz/reason"
_YES = '{"expressions":["granted"]}'
_NO = {f'{{"expressions":["{reason}"]}}': reason for reason in REASONS - {"granted"}}
_BUILT_INS = frozenset({"startswith"})
_TEXT_CHARACTERS_MAX = 1024
_ROLES_MAX = 64
_UNSAFE = re.compile(r"[\"\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_MODULE_BYTES_MAX = 64 * 1024
# A comment ends with its line, whatever is in it; a text is taken whole, so that a name in it is not a call.
_NOT_CODE = re.compile(r'"(?:[^"\\\n]|\\.)*"|`[^`]*`|#[^\n]*')
_CALL = re.compile(r"([\w.\[\]]*)\(")
_WORDS = frozenset({"data", "input", "true", "false", "null"})


def read_module() -> str:
    """Return the text of the rules that come with Nexus."""
    return (resources.files("nexus_ray.security") / "rego" / "authz.rego").read_text()


def check_module(source: str) -> None:
    """Refuse a module that asks for more than what is known to be safe.

    Raises:
        InvalidArgumentError: It names a built-in outside the list, imports, changes input or data, or is no Rego v1.
    """
    if len(source.encode()) > _MODULE_BYTES_MAX:
        raise InvalidArgumentError(f"a module of rules is at most {_MODULE_BYTES_MAX} bytes")
    code = _NOT_CODE.sub(" ", source)
    if '"' in code or "`" in code:
        raise InvalidArgumentError("a text in the rules does not end")
    if not re.search(r"^import rego\.v1$", code, re.MULTILINE):
        raise InvalidArgumentError("the rules are not Rego v1: a line `import rego.v1` says so")
    for line in re.findall(r"^\s*import\s+(.*)$", code, re.MULTILINE):
        if line.strip() != "rego.v1":
            raise InvalidArgumentError(f"the rules may import nothing but rego.v1, not {line.strip()[:60]!r}")
    if re.search(r"\b(with|every|walk)\b", code):
        raise InvalidArgumentError("the rules may not use `with`, `every` or `walk`")
    if re.search(r"\.\s*\n|\n\s*[.(\[]", code):
        raise InvalidArgumentError("a name or a call in the rules goes over the end of its line")
    code = re.sub(r"[ \t]*([.(\[\]])[ \t]*", r"\1", code)
    for name in _CALL.findall(code):
        if name not in _BUILT_INS:
            raise InvalidArgumentError(f"the rules call {name!r}; allowed is {', '.join(sorted(_BUILT_INS))}")
    # A built-in can be named without being called at once: every dotted name begins with what is ours.
    code = code.replace("rego.v1", " ").replace("nexus.authz", " ")
    for name in re.findall(r"(?<![\w.\]])([A-Za-z_]\w*)\.(?=\w)", code):
        if name in _WORDS or re.search(rf"\bsome\s+(\w+,\s*)?{name}\s+in\b|(?m:^\s+{name} :=)", code):
            continue
        raise InvalidArgumentError(f"the rules name {name!r}, which is neither input, data nor a variable of theirs")


class RegoEngine:
    """Decides in this process. Implements `PolicyEngine`."""

    def __init__(self, policy: Policy, module: str | None = None, timeout_s: float = 0.25) -> None:
        self.policy = policy
        self._timeout_s = timeout_s
        self._module = read_module() if module is None else module
        check_module(self._module)
        self._threads = threading.local()  # An interpreter is of one thread; each thread compiles its own.
        self._interpreter()

    @property
    def revision(self) -> str:
        """See `PolicyEngine.revision`."""
        return self.policy.revision

    def narrow(self, request: PolicyRequest) -> PolicyRequest:
        """See `PolicyEngine.narrow`."""
        return self.policy.narrow(request)

    def decide(self, request: PolicyRequest) -> Decision:
        """See `PolicyEngine.decide`."""
        narrowed = self.policy.narrow(request)
        if not is_safe(narrowed):
            return Decision(False, "input_refused", self.revision)
        try:
            interpreter, bundle = self._interpreter()
            # Nothing can end an evaluation of this thread from outside, so what took too long is refused afterwards;
            # by the thread's own time, for that a machine is busy with others is no fault of a policy. Nor is it that
            # the collector of garbage came by, or the machine under this one stood still: so it is asked once more.
            for _ in range(2):
                started = time.thread_time()
                interpreter.set_input(facts(narrowed, self.policy))
                answer = str(interpreter.query_bundle_entrypoint(bundle, ENTRYPOINT))
                if time.thread_time() - started <= self._timeout_s:
                    break
            else:
                return Decision(False, "engine_timeout", self.revision)
            if answer == _YES:
                return Decision(True, "granted", self.revision)
        except Exception:
            # Whatever it was, the interpreter may be half-way through it: the next call makes another.
            self._threads.__dict__.clear()
            return Decision(False, "engine_failed", self.revision)
        return Decision(False, _NO.get(answer, "engine_undefined"), self.revision)

    def _interpreter(self) -> tuple[Any, Any]:
        made = getattr(self._threads, "made", None)
        if made is None:
            # Imported here, long after ray: where ray is loaded second, the process ends with "invalid pointer".
            from regopy import Interpreter

            interpreter = Interpreter()
            interpreter.strict_built_in_errors = True
            try:
                interpreter.add_module("authz.rego", self._module)
                # Not `add_data`: it writes \u00e4 for an "ä", which no input holds; such a name was never granted.
                document = json.dumps({"nexus": {"policy": self.policy.document}}, ensure_ascii=False)
                interpreter.add_data_json(document)
                bundle = interpreter.build(None, [ENTRYPOINT])
            except Exception:
                raise InvalidArgumentError("the rules do not compile") from None
            if not bundle.ok():
                raise InvalidArgumentError("the rules do not compile")
            made = self._threads.made = (interpreter, bundle)
        return made


def is_safe(request: PolicyRequest) -> bool:
    """Tell whether nothing in a request could end a text inside the interpreter, or is too long for it."""
    texts = (request.principal, request.tenant, request.action, request.resource, request.source, *request.roles)
    return len(request.roles) <= _ROLES_MAX and all(
        len(text) <= _TEXT_CHARACTERS_MAX and _UNSAFE.search(text) is None for text in texts
    )
