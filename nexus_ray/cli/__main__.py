"""`python -m nexus_ray.cli`: how a detached fleet is started, whatever is on the PATH."""

from nexus_ray.cli.entry import run

run()
