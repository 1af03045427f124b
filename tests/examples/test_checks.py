"""Each rule on a file that breaks it, and beside that on one that only looks as if it did."""

from typing import get_args

import pytest
import supply_chain_checks
from supply_chain_checks import RULES, Severity, check_licence, check_source, check_startup, shown

BREAKS = {
    "dynamic-code": ["eval(x)", "exec(x)", "compile(x, 'f', 'exec')", "import builtins\nbuiltins.eval(x)",
                     "from builtins import exec as run\nrun(x)", "class A:\n    def eval(self): ...\neval(x)"],
    "shell": ["import os\nos.system(x)", "from os import popen\npopen(x)", "import subprocess as s\ns.getoutput(x)",
              "import subprocess\nsubprocess.run(x, shell=True)"],
    "unsafe-load": ["import pickle\npickle.loads(x)", "import marshal\nmarshal.load(f)",
                    "from dill import loads\nloads(x)"],
    "unsafe-yaml": ["import yaml\nyaml.load(x)", "import yaml\nyaml.load(x, Loader=yaml.Loader)",
                    "from yaml import unsafe_load\nunsafe_load(x)"],
    "no-tls-check": ["import ssl\nssl._create_unverified_context()", "session.get(url, verify=False)"],
    "subprocess": ["import subprocess\nsubprocess.run(['ls'])", "from subprocess import Popen\nPopen(x)",
                   "import os\nos.execv(x, y)"],
    "socket": ["import socket\nsocket.socket()", "from socket import create_connection\ncreate_connection(x)"],
    "blocking-in-async": ["import time\nasync def f():\n    time.sleep(1)",
                          "async def f():\n    with open(x) as g: ...",
                          "import requests\nasync def f():\n    return requests.get(x)",
                          "async def f():\n    return [open(x) for x in y]"],
    "hidden-text": ["x = 1  # \u202e hidden"],
}  # fmt: skip

KEEPS = {
    "dynamic-code": ["import ast\nast.literal_eval(x)", "import re\nre.compile(x)", "model.eval()", "x = 'eval(y)'",
                     "def compile(x): ...\ncompile(x)", "from mine import exec\nexec(x)"],
    "shell": ["import subprocess\nsubprocess.run(x, shell=False)", "console.system(x)",
              "import platform\nplatform.system()"],
    "unsafe-load": ["import json\njson.loads(x)", "import pickle\npickle.dumps(x)", "loads(x)"],
    "unsafe-yaml": ["import yaml\nyaml.safe_load(x)", "import yaml\nyaml.load(x, Loader=yaml.SafeLoader)",
                    "import yaml\nfrom yaml import CSafeLoader\nyaml.load(x, CSafeLoader)"],
    "no-tls-check": ["session.get(url, verify=True)", "session.get(url, verify=path)"],
    "subprocess": ["import subprocess\nsubprocess.PIPE", "runner.run(x)"],
    "socket": ["import socket\nsocket.gethostname()", "self.socket()"],
    "blocking-in-async": ["import time\ndef f():\n    time.sleep(1)",
                          "import asyncio\nasync def f():\n    await asyncio.sleep(1)",
                          "import time\nasync def f():\n    def g(): time.sleep(1)",
                          "import time\nasync def f():\n    await run(lambda: time.sleep(1))",
                          "async def f(x=open('y')): ..."],
    "hidden-text": ["x = 'gr\u00fc\u00df'"],
}  # fmt: skip


def rules_of(source: str) -> set[str]:
    return {item.rule for item in check_source(source.encode(), "a.py")}


@pytest.mark.parametrize(("rule", "source"), [(rule, source) for rule, all_of in BREAKS.items() for source in all_of])
def test_a_rule_sees_what_breaks_it(rule: str, source: str) -> None:
    assert rule in rules_of(source)


@pytest.mark.parametrize(("rule", "source"), [(rule, source) for rule, all_of in KEEPS.items() for source in all_of])
def test_a_rule_leaves_what_only_looks_alike(rule: str, source: str) -> None:
    assert rule not in rules_of(source)


def test_every_rule_is_tried_and_has_a_severity() -> None:
    assert set(BREAKS) == set(KEEPS) == set(RULES) - {"startup-code", "copyleft", "no-licence"}
    assert {rule.severity for rule in RULES.values()} == set(get_args(Severity))


def test_a_finding_says_where_and_shows_its_line() -> None:
    source = b"import os\n\n\ndef f(x):\n    os.system(  x)  # why\n"

    (found,) = check_source(source, "pkg/a.py")

    assert (found.file, found.line, found.code, found.severity) == ("pkg/a.py", 5, "os.system(  x)  # why", "high")


def test_a_call_with_constants_only_is_told_from_one_that_takes_what_comes() -> None:
    found = check_source(b"eval('1 + 1')\neval(x)\neval('1'), eval(x)\n", "a.py")

    assert [(item.line, item.literal) for item in found] == [(1, True), (2, False), (3, False)]


def test_a_start_up_line_is_one_that_imports() -> None:
    found = check_startup("../src\nimport os; os.system('x')\n# import no\n", "x.pth")

    assert [(item.rule, item.line) for item in found] == [("startup-code", 2)]


@pytest.mark.parametrize(
    ("licence", "rules"),
    [("", ["no-licence"]), ("AGPL-3.0", ["copyleft"]), ("GPLv3", ["copyleft"]), ("LGPL-2.1", []), ("MIT", [])],
)
def test_a_licence_is_read_for_what_it_asks(licence: str, rules: list[str]) -> None:
    assert [item.rule for item in check_licence(licence, "METADATA")] == rules


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (b"def broken(:\n    eval(x)\n", "line 1"),
        (b"x = '\xff'\n", "encoding"),
        (b"# coding: hex\nx = 1\n", "hex"),
        (b"# coding: no-such\n", "no-such"),
        (b"eval(x)\0\n", "null"),
        (b"eval" + b"(" * 5000, "nested"),
        (b"eval(" + b"-" * 200_000 + b"1)", "nested"),
    ],
)
def test_a_file_that_is_no_python_is_refused_with_the_reason(source: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        check_source(source, "a.py")


def test_a_file_without_a_word_that_a_rule_goes_by_is_not_parsed() -> None:
    assert check_source(b"def broken(:\n", "a.py") == []
    assert [item.rule for item in check_source("def broken(: # \u202e".encode(), "a.py")] == ["hidden-text"]


def test_every_call_that_a_rule_names_is_among_the_words_that_have_a_file_parsed() -> None:
    for name, rule in supply_chain_checks._CALLS.items():
        module, _, verb = name.rpartition(".")
        source = f"from {module} import {verb} as run\nrun(x)\n" if module else f"{name}(x)\n"
        assert rules_of(source) == {rule}, name


def test_an_empty_file_and_other_encodings_are_read() -> None:
    assert check_source(b"", "a.py") == []
    assert rules_of("") == set()
    assert [item.code for item in check_source("# coding: latin-1\neval('\u00e9')".encode("latin-1"), "a.py")] == [
        "eval('\u00e9')"
    ]
    assert len(check_source(b"\xef\xbb\xbfeval(x)\r\neval(y)\r\n", "a.py")) == 2


def test_what_is_shown_hides_nothing_and_is_short() -> None:
    assert shown("a\u202eb\x1b[31m\n\udc80") == "a\\u202eb\\x1b[31m\\n\\udc80"
    assert len(shown("x" * 10_000_000)) == 140
