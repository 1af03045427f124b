"""The chaos run: a fleet under load is struck process by process, by a seeded schedule; then all is accounted for."""
