"""Make the notebooks from their texts: `make notebooks` runs each against a fleet of its own and keeps the outputs.

The text (`*.py`, jupytext's percent format) is the source; the notebook (`*.ipynb`) beside it is generated.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from traitlets.config import Config

from nexus_ray.cli.demo import free_port

FOLDER = Path(__file__).resolve().parent
EXAMPLES = FOLDER.parent / "examples"
APP = "strategies:app"
TEXTS = tuple(sorted(path for path in FOLDER.glob("[0-9]*.py")))
CELL_S_MAX = 60  # The slowest cell takes some ten seconds on an idle machine.


def read_text(text: Path) -> NotebookNode:
    """Return the notebook that a text describes, without outputs; the same text gives the same notebook."""
    notebook = jupytext.read(text)
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    for number, cell in enumerate(notebook.cells, start=1):
        cell.id = f"cell-{number}"  # Random ones would change every line of a notebook's history.
    return notebook


def execute(notebook: NotebookNode, state: Path) -> NotebookNode:
    """Run a notebook from top to bottom against the fleet of a state folder, and put the outputs in.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell raised.
        nbclient.exceptions.CellTimeoutError: A cell took longer than `CELL_S_MAX`.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NEXUS_")}
    environment |= {"NEXUS_STATE_DIR": str(state), "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    with tempfile.TemporaryDirectory(prefix="kernel-") as folder:
        # Files of this user rather than ports: what is said to a kernel over TCP is not encrypted.
        kernel = {"transport": "ipc", "connection_file": f"{folder}/kernel.json"}
        client = NotebookClient(
            notebook, timeout=CELL_S_MAX, record_timing=False, config=Config({"KernelManager": kernel})
        )
        client.execute(env=environment, cwd=str(FOLDER))
    notebook.metadata.pop("language_info", None)  # Holds the version of this machine's Python.
    return notebook


@contextmanager
def fleet() -> Iterator[Path]:
    """Start the example fleet, yield its state folder, stop it."""
    nexus = [sys.executable, "-m", "nexus_ray.cli"]
    with tempfile.TemporaryDirectory(prefix="nexus-notebooks-") as folder:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("NEXUS_", "RAY_"))},
            "NEXUS_STATE_DIR": folder,
            "NEXUS_RUNTIME__DASHBOARD_PORT": str(free_port()),
            "NEXUS_RUNTIME__HTTP_PORT": str(free_port()),
        }
        subprocess.run([*nexus, "up", APP, "--detach"], cwd=EXAMPLES, env=environment, check=True, timeout=180)
        try:
            yield Path(folder)
        finally:
            subprocess.run([*nexus, "down"], env=environment, check=True, timeout=90)


def main() -> None:
    """Run every notebook and write it beside its text."""
    with fleet() as state:
        for text in TEXTS:
            notebook = execute(read_text(text), state)
            nbformat.write(notebook, text.with_suffix(".ipynb"))
            print(f"wrote {text.with_suffix('.ipynb').name}")


if __name__ == "__main__":
    main()
