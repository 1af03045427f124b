import sys
from pathlib import Path

# As `nexus up` finds them: the examples import one another by their bare names.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
