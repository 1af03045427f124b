"""What is promised in one place and used in another: errors, metrics, settings, and the reference of them all."""

import ast
import copy
import importlib.util
import pickle
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel

from nexus_ray.api.problems import STATUSES
from nexus_ray.cli.exits import ExitCode, error_exit_code
from nexus_ray.config import Settings
from nexus_ray.core.errors import NexusError, error_classes
from nexus_ray.observe.catalogue import METRICS
from tests.house.support import ROOT, modules, tree

ERRORS = pytest.mark.parametrize("name", sorted(error_classes()))
# gRPC's canonical words, `ok` left out.
CANONICAL = {
    "cancelled", "unknown", "invalid_argument", "deadline_exceeded", "not_found", "already_exists",
    "permission_denied", "resource_exhausted", "failed_precondition", "aborted", "out_of_range", "unimplemented",
    "internal", "unavailable", "data_loss", "unauthenticated",
}  # fmt: skip


@ERRORS
def test_every_error_survives_a_pickle_with_its_facts(name: str) -> None:
    error = error_classes()[name]("what to do", retry_after_s=2.0, problems=[{"field": "n"}])

    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is type(error)
        assert (twin.message, str(twin), twin.details) == ("what to do", "what to do", error.details)


@ERRORS
def test_every_error_has_a_canonical_code_and_says_what_it_means(name: str) -> None:
    cls = error_classes()[name]

    assert cls.code in CANONICAL
    assert (cls.__doc__ and "code" in vars(cls)) or cls.code == NexusError.code


@pytest.mark.parametrize("fact", ["cause", "args", "pid", "ip"])
def test_a_fact_that_ray_would_overwrite_is_a_bug(fact: str) -> None:
    with pytest.raises(AssertionError):
        NexusError("x", **{fact: 1})


def test_every_error_is_defined_in_the_one_tree() -> None:
    assert {cls.__module__ for cls in error_classes().values()} == {"nexus_ray.core.errors"}


def test_every_code_that_a_caller_can_react_to_has_a_status_and_an_exit_code() -> None:
    codes = {cls.code for cls in error_classes().values()}

    # The others are bugs, losses, and outcomes of a goal: a bare 500 where one gets to the edge.
    assert codes - set(STATUSES) == {"internal", "unknown", "data_loss", "cancelled"}
    assert set(STATUSES) <= codes
    assert {error_exit_code(cls()) for cls in error_classes().values()} == set(ExitCode) - {
        ExitCode.OK, ExitCode.INTERRUPTED,
    }  # fmt: skip


KINDS = {
    "count": {"counter"}, "record": {"histogram"}, "gauge": {"gauge"}, "series": {"counter", "histogram"},
}  # fmt: skip


def uses() -> list[tuple[str, str, set[str], str]]:
    """Return every use of a metric in the code: function, name, labels, and where."""
    found = []
    for module, path in modules().items():
        for node in ast.walk(tree(path)):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "metrics"
                and node.func.attr in KINDS
            ):
                name = node.args[0]
                assert isinstance(name, ast.Constant), f"{module}:{node.lineno}: a metric's name is written out"
                labels = {keyword.arg for keyword in node.keywords if keyword.arg != "value"}
                found.append(
                    (node.func.attr, str(name.value), {str(label) for label in labels}, f"{module}:{node.lineno}")
                )
    return found


def test_every_metric_that_is_used_is_in_the_catalogue_with_these_labels_and_of_this_kind() -> None:
    assert len(uses()) > 10
    for function, name, labels, where in uses():
        assert name in METRICS, where
        assert labels == set(METRICS[name].labels), where
        assert METRICS[name].kind in KINDS[function], where


def test_every_metric_of_the_catalogue_is_used() -> None:
    assert set(METRICS) - {name for _, name, _, _ in uses()} == set()


def test_no_label_is_an_id_and_every_metric_says_what_it_tells() -> None:
    for metric in METRICS.values():
        assert metric.name.startswith("nexus_") and metric.help
        assert not [label for label in metric.labels if label == "id" or label.endswith("_id")]
        assert (metric.kind == "histogram") == bool(metric.buckets)
        assert list(metric.buckets) == sorted(set(metric.buckets))


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_what_the_code_says(generator: Any) -> None:
    written = {path.name: path.read_text(encoding="utf-8") for path in Path(generator.FOLDER).glob("*.md")}

    pages = generator.pages()

    assert set(written) == set(pages)
    for name, text in pages.items():
        assert written[name] == text, f"docs/reference/{name} is not what the code says: run `make docs`"


def test_the_reference_is_the_same_on_every_machine(generator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    here = generator.pages()
    monkeypatch.setattr("os.cpu_count", lambda: 96)
    monkeypatch.setenv("HOME", "/elsewhere")
    monkeypatch.setenv("COLUMNS", "40")

    assert generator.pages() == here


def settings() -> list[tuple[str, str]]:
    return [
        (section, name)
        for section, field in Settings.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        for name in field.annotation.model_fields
    ]


@pytest.mark.parametrize(("section", "name"), settings())
def test_every_setting_gives_the_reason_for_its_default(generator: Any, section: str, name: str) -> None:
    model = Settings.model_fields[section].annotation
    assert isinstance(model, type) and issubclass(model, BaseModel)

    assert model.model_fields[name].description or generator._reasons(model).get(name)
    assert model.model_config.get("frozen") and model.model_config.get("extra") == "forbid"


def test_every_setting_metric_error_verb_and_route_stands_in_the_reference(generator: Any) -> None:
    from nexus_ray.api.app import build_app
    from nexus_ray.config import RuntimeSettings

    def text(name: str) -> str:
        return (Path(generator.FOLDER) / name).read_text(encoding="utf-8")

    assert all(f"| `{section}.{name}` | `NEXUS_{section}__{name}`".lower() in text("settings.md").lower()
               for section, name in settings())  # fmt: skip
    assert all(f"| `{name}` |" in text("metrics.md") for name in METRICS)
    assert all(f"| `{name}` | `{cls.code}` |" in text("errors.md") for name, cls in error_classes().items())
    verbs = generator.leaves(generator.typer.main.get_command(generator.verbs))
    assert all(f"\n## {path}\n" in text("cli.md") for path, _ in verbs) and len(verbs) >= 12
    routes = [route for route in build_app(None, RuntimeSettings()).routes if hasattr(route, "methods")]  # type: ignore[arg-type]
    shown = text("http.md")
    assert all(f"\n## {method} {route.path_format}\n" in shown for route in routes for method in route.methods)
    assert len(routes) >= 14
