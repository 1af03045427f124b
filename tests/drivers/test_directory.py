"""The directory over processes that die, hang, do not start, and a ledger that is away."""

import asyncio
import itertools
from collections.abc import Sequence

import pytest

from nexus_ray.core.errors import FailedPreconditionError, FencedError, NotFoundError, UnavailableError
from nexus_ray.ledger.memory import MemoryLedger
from nexus_ray.runtime import directory as module
from nexus_ray.runtime.directory import Directory, Found
from nexus_ray.runtime.placement import Member, Membership, Slot
from tests.support.records import a_goal
from tests.support.runners import until


class Processes:
    """Implements `HostProcesses`: hosts that live until a test says otherwise."""

    def __init__(self, slots: int = 2) -> None:
        self.places = [Slot("node-1", number) for number in range(slots)]
        self.numbers = itertools.count(1)
        self.deaths: dict[str, asyncio.Event] = {}
        self.living: dict[str, tuple[Slot | None, Member]] = {}
        self.known = Membership(0, ())
        self.hung: set[str] = set()
        self.pings: list[str] = []
        self.killed: list[str] = []
        self.refusals = 0
        self.looks = 0

    async def slots(self) -> Sequence[Slot]:
        self.looks += 1
        return list(self.places)

    async def spawn(self, slot: Slot) -> Member:
        await asyncio.sleep(0)
        if self.refusals > 0:
            self.refusals -= 1
            raise UnavailableError("no room for a process")
        return self.alive(f"host-{next(self.numbers)}", slot)

    def alive(self, name: str, slot: Slot | None) -> Member:
        node = slot.node_id if slot is not None else ""
        self.deaths[name] = asyncio.Event()
        member = Member(name, f"name of {node}", node)
        self.living[name] = (slot, member)
        return member

    async def discover(self) -> Sequence[Found]:
        return [Found(slot, member, self.known) for slot, member in self.living.values()]

    async def ping(self, member: Member) -> int:
        self.pings.append(member.host)
        if member.host in self.hung:
            raise UnavailableError("no answer")
        return self.known.epoch

    async def until_death(self, member: Member) -> None:
        await self.deaths[member.host].wait()

    async def kill(self, member: Member) -> None:
        self.killed.append(member.host)
        self.die(member.host)

    def die(self, host: str) -> None:
        self.living.pop(host, None)
        self.deaths[host].set()

    async def follow(self, directory: Directory) -> None:
        """As all hosts do."""
        while True:
            self.known = await directory.watch(self.known.epoch, 10.0)


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
    monkeypatch.setattr(module, "_KNOWN_EVERY_S", 0.001)


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
        assert directory.membership.epoch == 2 and ledger.told == ["epoch 1", "epoch 2"]
        assert await directory.watch(0, 0) is directory.membership
        assert await directory.watch(2, 0.001) is directory.membership


async def test_a_host_that_dies_is_fenced_before_anybody_is_told_and_then_replaced() -> None:
    processes, ledger = Processes(2), Story()
    async with Started(processes, ledger) as directory:
        epochs = [directory.membership.epoch]
        processes.die("host-1")

        epochs.append((await until_members(directory, "host-2")).epoch)
        assert ledger.told[2:] == ["epoch 3", "fence host-1", "epoch 4"]
        with pytest.raises(FencedError):
            await ledger.append("host-1", [])
        epochs.append((await until_members(directory, "host-2", "host-3")).epoch)

    assert epochs == [2, 4, 5] and processes.killed == ["host-1"]


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
        processes.die("host-2")

        async with asyncio.timeout(10):
            while ledger.away:
                assert names(directory.membership) == ["host-1", "host-2"]
                await asyncio.sleep(0)
        await until_members(directory, "host-1", "host-3")

    assert ledger.told == ["epoch 1", "epoch 2", "epoch 3", "fence host-2", "epoch 4", "epoch 5"]


async def test_a_host_that_does_not_start_is_tried_again() -> None:
    processes, ledger = Processes(2), Story()
    async with Started(processes, ledger) as directory:
        processes.refusals = 5
        processes.die("host-1")

        await until_members(directory, "host-2", "host-3")

    assert processes.refusals == 0


async def test_hosts_that_die_together_are_all_fenced_and_replaced() -> None:
    processes, ledger = Processes(4), Story()
    async with Started(processes, ledger) as directory:
        for name in ("host-1", "host-2", "host-3"):
            processes.die(name)

        membership = await until_members(directory, "host-4", "host-5", "host-6", "host-7")

    fenced = [told for told in ledger.told if told.startswith("fence")]
    assert sorted(fenced) == ["fence host-1", "fence host-2", "fence host-3"]
    assert ledger.told.index(f"epoch {membership.epoch}") > max(map(ledger.told.index, fenced))


async def test_a_directory_that_starts_again_keeps_the_living_and_fences_the_rest() -> None:
    processes, ledger = Processes(2), Story()
    await ledger.accept([a_goal()], "host-dead")
    await ledger.accept([a_goal("goal-2")], "host-old")
    place = processes.places[0]
    for name, slot in (("host-old", place), ("host-mute", None), ("host-extra", place)):
        processes.alive(name, slot)

    async with Started(processes, ledger) as directory:
        assert names(directory.membership) == ["host-1", "host-old"]

    fenced = [told for told in ledger.told if told.startswith("fence")]
    assert fenced == ["fence host-mute", "fence host-extra", "fence host-dead"]
    assert processes.killed == ["host-mute", "host-extra"]


async def test_a_machine_that_comes_is_used_and_one_that_goes_is_not_waited_for() -> None:
    processes, ledger = Processes(1), Story()
    async with Started(processes, ledger) as directory:
        processes.places.append(Slot("node-2", 0))
        await until_members(directory, "host-1", "host-2")
        processes.places.pop()
        processes.die("host-2")
        await until_members(directory, "host-1")
        processes.places.append(Slot("node-2", 0))

        await until_members(directory, "host-1", "host-3")


async def test_a_directory_that_ended_between_fencing_and_telling_is_followed_by_one_that_finds_the_same() -> None:
    processes, ledger = Processes(2), Story()
    async with Started(processes, ledger) as first:
        before = first.membership
    await ledger.fence("host-2")  # Hung, fenced, not yet killed; and answers again.

    async with Started(processes, ledger) as second:
        assert names(second.membership) == ["host-1", "host-3"] and processes.killed == ["host-2"]
        assert second.membership.epoch > before.epoch


@pytest.mark.parametrize("sees", ["a death", "a machine", "a wish to drain"])
async def test_a_directory_with_a_successor_resigns_and_neither_tells_nor_takes_anything(sees: str) -> None:
    cut_off, processes, ledger = Processes(2), Processes(2), Story()
    async with Started(cut_off, ledger) as older, Started(processes, ledger) as newer:
        told, before = older.membership, len(ledger.told)
        if sees == "a death":
            cut_off.die("host-1")
        elif sees == "a machine":
            cut_off.places.append(Slot("node-2", 0))
        else:
            with pytest.raises(FencedError):
                await older.drain("host-1")
        async with asyncio.timeout(10):
            await asyncio.shield(older.resigned)

        assert older.membership is told and names(newer.membership) == ["host-1", "host-2"]
        assert cut_off.killed == [] and ledger.told[before:] == [f"epoch {newer.membership.epoch + 1}"]

    # That draw is missing to the newer one too, which resigns when it notices; Ray starts it anew.
    async with Started(processes, ledger) as newest:
        assert newest.membership.members == newer.membership.members
        assert newest.membership.epoch > newer.membership.epoch > told.epoch


def weights(membership: Membership) -> dict[str, float]:
    return {member.host: member.weight for member in membership.members}


@pytest.mark.parametrize("target", ["host-1", "name of node-1", "node-1-its-id"])
async def test_what_is_drained_owns_nothing_stays_a_member_and_is_not_filled_anew(target: str) -> None:
    processes, ledger = Processes(0), Story()
    processes.places = [Slot("node-1-its-id", 0), Slot("node-2-its-id", 0)]
    target = target.replace("name of node-1", "name of node-1-its-id")
    async with Started(processes, ledger) as directory:
        following = asyncio.ensure_future(processes.follow(directory))
        assert await directory.drain(target) == ["host-1"]
        assert processes.known is directory.membership and directory.membership.drained == (processes.places[0],)
        assert weights(directory.membership) == {"host-1": 0.0, "host-2": 1.0}

        processes.die("host-1")
        await until_members(directory, "host-2")
        looked = processes.looks
        async with asyncio.timeout(10):
            while processes.looks < looked + 3:
                await asyncio.sleep(0.001)
        assert names(directory.membership) == ["host-2"]
        await directory.drain("node-1-its-id", is_undone=True)

        assert weights(await until_members(directory, "host-2", "host-3")) == {"host-2": 1.0, "host-3": 1.0}
        following.cancel()


async def test_the_last_host_is_not_drained_and_an_unknown_one_is_refused() -> None:
    processes, ledger = Processes(2), Story()
    async with Started(processes, ledger) as directory:
        with pytest.raises(NotFoundError):
            await directory.drain("host-9")
        with pytest.raises(FailedPreconditionError):
            await directory.drain("name of node-1")
        before = directory.membership
        assert weights(before) == {"host-1": 1.0, "host-2": 1.0}

        await directory.drain("host-1")
        with pytest.raises(FailedPreconditionError):
            await directory.drain("host-2")
        assert weights(directory.membership) == {"host-1": 0.0, "host-2": 1.0}


async def test_what_is_drained_stays_so_over_a_new_directory_until_its_machine_has_gone() -> None:
    processes, ledger = Processes(1), Story()
    processes.places.append(Slot("node-2", 0))
    async with Started(processes, ledger) as first:
        processes.known = Membership(1, ())  # One host has not heard of it when the others have.
        await first.drain("host-2")
        processes.known = first.membership

    async with Started(processes, ledger) as second:
        assert weights(second.membership) == {"host-1": 1.0, "host-2": 0.0}
        place = processes.places.pop()
        processes.die("host-2")
        await until_members(second, "host-1")
        looked = processes.looks
        async with asyncio.timeout(10):
            while processes.looks < looked + 3:
                await asyncio.sleep(0.001)
        processes.places.append(place)

        assert weights(await until_members(second, "host-1", "host-3")) == {"host-1": 1.0, "host-3": 1.0}


async def test_a_claim_of_the_dead_that_comes_late_is_found_and_its_host_fenced_once() -> None:
    processes, ledger = Processes(), Story()
    async with Started(processes, ledger) as directory:
        await ledger.accept([a_goal("goal-1"), a_goal("goal-2")], "host-before")
        await ledger.accept([a_goal("goal-3")], "host-1")

        await until(lambda: "fence host-before" in ledger.told)
        looks = processes.looks
        await until(lambda: processes.looks > looks + 3)

        assert [line for line in ledger.told if line.startswith("fence")] == ["fence host-before"]
        assert {member.host for member in directory.membership.members} == {"host-1", "host-2"}
