"""What Nexus costs and how fast it is, measured: `make bench`. See README.md beside this file."""
