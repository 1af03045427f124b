"""The directory over processes that die, hang, do not start, and a ledger that is away."""

import asyncio
import itertools
from collections.abc import Sequence

import pytest

from nexus_ray.core.errors import FencedError, UnavailableError
from nexus_ray.goals.ledger_memory import MemoryLedger
from nexus_ray.runtime import directory as module
from nexus_ray.runtime.directory import Directory, Slot
from nexus_ray.runtime.placement import Member, Membership
from tests.support.records import a_goal


class Processes:
    """Implements `HostProcesses`: hosts that live until a test says otherwise."""

    def __init__(self, slots: int = 2) -> None:
        self.places = [Slot("node-1", number) for number in range(slots)]
        self.numbers = itertools.count(1)
        self.deaths: dict[str, asyncio.Event] = {}
        self.living: list[tuple[Slot | None, Member]] = []
        self.hung: set[str] = set()
        self.pings: list[str] = []
        self.killed: list[str] = []
        self.refusals = 0

    async def slots(self) -> Sequence[Slot]:
        return list(self.places)

    async def spawn(self, slot: Slot) -> Member:
        await asyncio.sleep(0)
        if self.refusals > 0:
            self.refusals -= 1
            raise UnavailableError("no room for a process")
        return self.alive(f"host-{next(self.numbers)}", slot.node_id)

    def alive(self, name: str, node: str = "node-1") -> Member:
        self.deaths[name] = asyncio.Event()
        return Member(name, node, node)

    async def discover(self) -> Sequence[tuple[Slot | None, Member]]:
        return self.living

    async def ping(self, member: Member) -> None:
        self.pings.append(member.host)
        if member.host in self.hung:
            raise UnavailableError("no answer")

    async def until_death(self, member: Member) -> None:
        await self.deaths[member.host].wait()

    async def kill(self, member: Member) -> None:
        self.killed.append(member.host)
        self.deaths[member.host].set()


class Story(MemoryLedger):
    """Tells in which order hosts were fenced and epochs drawn; away for the next `away` calls of these."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []
        self.away = 0

    async def fence(self, host: str) -> None:
        self._here()
        await super().fence(host)
        self.told.append(f"fence {host}")

    async def next_epoch(self) -> int:
        self._here()
        epoch = await super().next_epoch()
        self.told.append(f"epoch {epoch}")
        return epoch

    def _here(self) -> None:
        if self.away > 0:
            self.away -= 1
            raise UnavailableError("the ledger is away")


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_START_AGAIN_AFTER_S", 0.001)


class Started:
    def __init__(self, processes: Processes, ledger: Story) -> None:
        self.directory = Directory(processes, ledger, ping_every_s=0.002, look_every_s=0.002)

    async def __aenter__(self) -> Directory:
        await self.directory.start()
        return self.directory

    async def __aexit__(self, *_: object) -> None:
        await self.directory.stop()


def names(membership: Membership) -> list[str]:
    return [member.host for member in membership.members]


async def until_members(directory: Directory, *hosts: str) -> Membership:
    async with asyncio.timeout(10):
        while names(directory.membership) != list(hosts):
            await directory.watch(directory.membership.epoch, 1.0)
    return directory.membership


async def test_every_slot_is_filled_before_the_start_is_over() -> None:
    processes, ledger = Processes(3), Story()

    async with Started(processes, ledger) as directory:
        assert names(directory.membership) == ["host-1", "host-2", "host-3"]
        assert directory.membership.epoch == 1 and ledger.told == ["epoch 1"]
        assert await directory.watch(0, 0) is directory.membership
        assert await directory.watch(1, 0.001) is directory.membership


async def test_a_host_that_dies_is_fenced_before_anybody_is_told_and_then_replaced() -> None:
    processes, ledger = Processes(2), Story()
    async with Started(processes, ledger) as directory:
        epochs = [directory.membership.epoch]
        processes.deaths["host-1"].set()

        epochs.append((await until_members(directory, "host-2")).epoch)
        assert ledger.told == ["epoch 1", "fence host-1", "epoch 2"]
        with pytest.raises(FencedError):
            await ledger.append("host-1", [])
        epochs.append((await until_members(directory, "host-2", "host-3")).epoch)

    assert epochs == [1, 2, 3] and processes.killed == ["host-1"]


async def test_a_host_that_hangs_is_given_some_pings_and_then_taken_for_dead() -> None:
    processes, ledger = Processes(2), Story()
    async with Started(processes, ledger) as directory:
        processes.pings.clear()
        processes.hung.add("host-1")

        await until_members(directory, "host-2", "host-3")

    assert processes.pings.count("host-1") == module._PINGS_MISSED_MAX
    assert processes.killed == ["host-1"] and "fence host-1" in ledger.told


async def test_a_ping_that_is_answered_again_in_time_starts_the_count_anew() -> None:
    processes, ledger = Processes(1), Story()
    async with Started(processes, ledger) as directory:
        for _ in range(3):
            processes.pings.clear()
            processes.hung.add("host-1")
            async with asyncio.timeout(10):
                while len(processes.pings) < module._PINGS_MISSED_MAX - 1:
                    await asyncio.sleep(0)
                processes.hung.clear()
                while len(processes.pings) < module._PINGS_MISSED_MAX + 1:
                    await asyncio.sleep(0)

        assert names(directory.membership) == ["host-1"] and processes.killed == []


async def test_a_ledger_that_is_away_is_waited_for_and_nobody_is_told_meanwhile() -> None:
    processes, ledger = Processes(2), Story()
    async with Started(processes, ledger) as directory:
        ledger.away = 10
        processes.deaths["host-2"].set()

        async with asyncio.timeout(10):
            while ledger.away:
                assert names(directory.membership) == ["host-1", "host-2"]
                await asyncio.sleep(0)
        await until_members(directory, "host-1", "host-3")

    assert ledger.told == ["epoch 1", "fence host-2", "epoch 2", "epoch 3"]


async def test_a_host_that_does_not_start_is_tried_again() -> None:
    processes, ledger = Processes(2), Story()
    async with Started(processes, ledger) as directory:
        processes.refusals = 5
        processes.deaths["host-1"].set()

        await until_members(directory, "host-2", "host-3")

    assert processes.refusals == 0


async def test_hosts_that_die_together_are_all_fenced_and_replaced() -> None:
    processes, ledger = Processes(4), Story()
    async with Started(processes, ledger) as directory:
        for name in ("host-1", "host-2", "host-3"):
            processes.deaths[name].set()

        membership = await until_members(directory, "host-4", "host-5", "host-6", "host-7")

    fenced = [told for told in ledger.told if told.startswith("fence")]
    assert sorted(fenced) == ["fence host-1", "fence host-2", "fence host-3"]
    assert ledger.told.index(f"epoch {membership.epoch}") > max(map(ledger.told.index, fenced))


async def test_a_directory_that_starts_again_keeps_the_living_and_fences_the_rest() -> None:
    processes, ledger = Processes(2), Story()
    await ledger.accept([a_goal()], "host-dead")
    await ledger.accept([a_goal("goal-2")], "host-old")
    old, mute, extra = (processes.alive(name) for name in ("host-old", "host-mute", "host-extra"))
    processes.living = [(processes.places[0], old), (None, mute), (processes.places[0], extra)]

    async with Started(processes, ledger) as directory:
        assert names(directory.membership) == ["host-1", "host-old"]

    assert ledger.told == ["fence host-mute", "fence host-extra", "fence host-dead", "epoch 1"]
    assert processes.killed == ["host-mute", "host-extra"]


async def test_a_machine_that_comes_is_used_and_one_that_goes_is_not_waited_for() -> None:
    processes, ledger = Processes(1), Story()
    async with Started(processes, ledger) as directory:
        processes.places.append(Slot("node-2", 0))
        await until_members(directory, "host-1", "host-2")
        processes.places.pop()
        processes.deaths["host-2"].set()
        await until_members(directory, "host-1")
        processes.places.append(Slot("node-2", 0))

        await until_members(directory, "host-1", "host-3")
