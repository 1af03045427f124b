"""The simulator as a test: many seeds, the same story twice, and bugs that must be found."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.bugs import BUGS
from tests.simulation.many import replay_command, run_many, told
from tests.simulation.world import quiet, simulate

SEEDS = 2000
FOUND_WITHIN = {
    "acknowledged-before-fsync": 50,
    "forgotten-step-keys": 400,
    "no-fence": 400,
    "no-state-versions": 800,
    "told-before-durable": 50,
}
"""By planted bug, the seeds within which it must be found: several times what it takes."""


@pytest.mark.timeout(400)  # Some 30 s of one core; the rest is for machines that have other things to do.
def test_two_thousand_seeds_end_as_they_should() -> None:
    total = run_many(range(1, SEEDS + 1))

    assert total.seeds == SEEDS
    assert not total.failed, "\n" + told(total.failed)
    assert total.deaths > SEEDS, "there was hardly any trouble: then this shows nothing"


@pytest.mark.parametrize("name", sorted(BUGS))
def test_a_planted_bug_is_found(name: str) -> None:
    with quiet():
        for seed in range(1, FOUND_WITHIN[name] + 1):
            if complaints := simulate(seed, BUGS[name]).complaints:
                assert not simulate(seed).complaints, "it is the bug that was found"
                assert simulate(seed, BUGS[name]).complaints == complaints, "and it is found again"
                return
    pytest.fail(f"{name} was not found within {FOUND_WITHIN[name]} seeds")


def test_a_seed_tells_the_same_story_in_every_process() -> None:
    stories = [_story("7", hash_seed) for hash_seed in ("1", "2")]

    assert stories[0] == stories[1]
    assert stories[0].count(b"\n") > 100
    assert _story("8", "1") != stories[0]


def test_a_story_is_the_same_whether_it_is_told_or_not() -> None:
    with quiet():
        silent, loud = simulate(11), simulate(11, is_traced=True)

    assert (silent.turns, silent.seconds, silent.deaths) == (loud.turns, loud.seconds, loud.deaths)
    assert loud.trace and not silent.trace


def test_a_seed_that_fails_is_told_with_the_command_that_replays_it() -> None:
    bug = "told-before-durable"

    run = _run("--seeds", "1..20", "--bug", bug, "--workers", "1")

    assert run.returncode == 1
    said = re.search(r"^seed (\d+): .*\n  replay: (.*)$", run.stdout.decode(), re.MULTILINE)
    assert said is not None and said[2] == replay_command(int(said[1]), bug)
    replayed = _run("--seed", said[1], "--bug", bug)
    assert replayed.returncode == 1 and b"FAILED: " in replayed.stdout


def _story(seed: str, hash_seed: str) -> bytes:
    run = _run("--seed", seed, hash_seed=hash_seed)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr
    return run.stdout


def _run(*arguments: str, hash_seed: str = "0") -> "subprocess.CompletedProcess[bytes]":
    root = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation", *arguments],
        cwd=root, env={**os.environ, "PYTHONHASHSEED": hash_seed}, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
