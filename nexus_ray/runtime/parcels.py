"""Parcels: what crosses between two hosts. All that waits for the same host goes in one call.

Law: a parcel is delivered at most once, and its delivery only says that it arrived; answers come in parcels of the
other direction. Where delivery failed, or the other host is gone, what waited for it is told that nobody knows.
"""

import asyncio
import contextlib
import functools
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

from nexus_ray.agents.promise import Promise
from nexus_ray.agents.runner import AgentRunner
from nexus_ray.agents.task import TaskOrder, TaskResult
from nexus_ray.core.errors import NexusError, ResourceExhaustedError, UnavailableError
from nexus_ray.core.identity import AgentId
from nexus_ray.ledger.goal import Goal
from nexus_ray.observe import metrics
from nexus_ray.observe.logs import get_logger
from nexus_ray.runtime.beside import Beside
from nexus_ray.runtime.items import Cancel, Forget, Item, Parcel, Reply, Request
from nexus_ray.runtime.placement import Member, Membership, Placement

log = get_logger("runtime.parcels")

_ITEMS_MAX = 512  # Above this one parcel only makes the next one wait: the cost per item is flat from 32 on.
_CARRY_AGAIN_S = 0.1
_BYTES_MAX = 8 * 1024 * 1024  # To a parcel, or one item; a stream of TLS is busy with it for 30 ms.
_WAITING_MAX = 100_000  # Items for one host. More is refused.
_WAITING_BYTES_MAX = 256 * 1024 * 1024  # As 100,000 items of 2.5 KiB each.
_ITEM_BYTES = 256  # What an item has beside its payload: names, keys, trace.


class Carrier(Protocol):
    """Brings a parcel to another host."""

    async def carry(self, member: Member, origin: str, epoch: int, items: Sequence[Item]) -> None:
        """Return when the other host has the parcel.

        Raises:
            UnavailableError: It is not known whether it arrived.
        """
        ...

    async def hand_on(self, member: Member, goals: Sequence[Goal]) -> None:
        """Tell another host of goals that are its own now.

        Raises:
            UnavailableError: It is not known whether it heard.
        """
        ...


class _Waiting:
    """What waits for one host, in order."""

    __slots__ = ("items", "size_bytes")

    def __init__(self) -> None:
        self.items: deque[tuple[int, Item]] = deque()  # With their sizes.
        self.size_bytes = 0

    @property
    def is_full(self) -> bool:
        return len(self.items) >= _WAITING_MAX or self.size_bytes >= _WAITING_BYTES_MAX

    def add(self, item: Item) -> None:
        size_bytes = _size_bytes(item)
        self.items.append((size_bytes, item))
        self.size_bytes += size_bytes

    def put_back(self, items: Sequence[Item]) -> None:
        self.items.extendleft((_size_bytes(item), item) for item in reversed(items))
        self.size_bytes += sum(map(_size_bytes, items))

    def take_parcel(self) -> Parcel:
        """Take as much as goes into one parcel: an item is never cut, so one over the limit goes alone."""
        parcel = Parcel()
        taken_bytes = 0
        while self.items and len(parcel) < _ITEMS_MAX:
            size_bytes, item = self.items[0]
            if parcel and taken_bytes + size_bytes > _BYTES_MAX:
                break
            taken_bytes += size_bytes
            parcel.append(item)
            self.items.popleft()
        self.size_bytes -= taken_bytes
        return parcel


def _size_bytes(item: Item) -> int:
    if type(item) is Request:
        return _ITEM_BYTES + len(item.order.payload)
    if type(item) is Reply and item.result is not None:
        return _ITEM_BYTES + len(item.result.value)
    return _ITEM_BYTES


class _Sent(Promise[TaskResult]):
    """An order that another host was asked to run."""

    __slots__ = ("host", "number", "office", "order")

    def __init__(self, office: "PostOffice", host: str, number: int, order: TaskOrder) -> None:
        super().__init__()
        self.office = office
        self.host = host
        self.number = number
        self.order = order

    def cancel(self, msg: Any = None) -> bool:
        """Have the other host told that nobody waits."""
        if self.done():
            return False
        self.office.withdraw(self)
        self.resolve(None, asyncio.CancelledError())
        return True


class PostOffice:
    """Gets tasks to the hosts their agents belong to; used from one event loop only. Implements `Dispatcher`."""

    def __init__(self, host: str, runner: AgentRunner, carrier: Carrier, beside: Beside) -> None:
        self._host = host
        self._beside = beside
        self._guests: dict[str, dict[str, None]] = {}  # By origin: goals over there that have agents of their own here.
        self._forgetting: set[asyncio.Task[None]] = set()
        self._runner = runner
        self._carrier = carrier
        self._placement = Placement(Membership(0, ()))
        self._members: dict[str, Member] = {}
        self._outgoing: dict[str, _Waiting] = {}
        self._senders: dict[str, asyncio.Task[None]] = {}
        self._asked: dict[int, _Sent] = {}
        self._running: dict[tuple[str, int], Promise[TaskResult]] = {}
        # Hosts that wrote from a newer membership than this host knows, and its epoch: they are not known here yet.
        self._newcomers: dict[str, int] = {}
        self._number = 0

    @property
    def membership(self) -> Membership:
        """The membership that this host goes by."""
        return self._placement.membership

    def owner(self, name: str | AgentId) -> Member:
        """Return the member that a name belongs to.

        Raises:
            UnavailableError: There are no members.
        """
        return self._placement.owner(name)

    def set_membership(self, membership: Membership) -> None:
        """Go by a newer membership; whoever waits for a host that has left is told so."""
        if membership.epoch <= self._placement.membership.epoch:
            return
        self._placement = Placement(membership)
        self._members = {member.host: member for member in membership.members}
        for host, epoch in list(self._newcomers.items()):
            if host in self._members or epoch <= membership.epoch:
                del self._newcomers[host]
        for number, sent in list(self._asked.items()):
            if sent.host not in self._members:
                self._settle(number, None, UnavailableError(f"host {sent.host} has left", host=sent.host))
        for host in list(self._outgoing):
            if self._has_left(host):
                del self._outgoing[host]
            elif self._outgoing[host].items and host in self._members:
                self._begin_to_send(host)
        for (origin, _), task in list(self._running.items()):
            if self._has_left(origin):
                task.cancel()
        for origin in [origin for origin in self._guests if self._has_left(origin)]:
            for goal_id in self._guests.pop(origin):
                self._forget_guest(origin, goal_id)

    def _has_left(self, host: str) -> bool:
        return host not in self._members and host not in self._newcomers

    def dispatch(self, order: TaskOrder) -> Promise[TaskResult]:
        """Have a task run where its agent is."""
        try:
            host = self._place(order)
            if host == self._host:
                return self._runner.run(order, is_local=True)
            self._number = number = self._number + 1
            self._post(host, Request(number, order))
        except (UnavailableError, ResourceExhaustedError) as error:
            refused: Promise[TaskResult] = Promise()
            refused.set_exception(error)
            return refused
        sent = self._asked[number] = _Sent(self, host, number, order)
        return sent

    def _place(self, order: TaskOrder) -> str:
        if not order.private:
            return self._placement.owner(order.agent).host
        return self._beside.place(order, lambda agent: self._placement.owner(agent).host, self._members.__contains__)

    async def forget_goal(self, goal_id: str) -> None:
        """Let the agents go that lived for one goal only, wherever they are."""
        for host in self._beside.forget(goal_id):
            self._post(host, Forget(goal_id))  # Where it does not get through, they go when they have been idle.
        await self._runner.forget_goal(goal_id)

    def _forget_guest(self, origin: str, goal_id: str) -> None:
        self._guests.get(origin, {}).pop(goal_id, None)
        task = asyncio.get_running_loop().create_task(self._runner.forget_goal(goal_id), name=f"forget {goal_id}")
        self._forgetting.add(task)
        task.add_done_callback(self._forgetting.discard)

    def withdraw(self, sent: _Sent) -> None:
        """Tell another host that nobody waits for what it was asked."""
        if self._asked.pop(sent.number, None) is not None and sent.host in self._members:
            # Where even this does not get through, the task runs to its end, and its result is on record.
            with contextlib.suppress(ResourceExhaustedError):
                self._post(sent.host, Cancel(sent.number))

    def deliver(self, origin: str, epoch: int, items: Sequence[Item]) -> None:
        """Take a parcel in from another host; `epoch` is the membership that the sender went by."""
        metrics.count("nexus_parcels_total", direction="in", result="success")
        if origin not in self._members and epoch > self._placement.membership.epoch:
            self._newcomers[origin] = max(epoch, self._newcomers.get(origin, 0))
        for item in items:
            if type(item) is Reply:  # Nearly all are of the first two kinds.
                number, result, code, message = item
                self._settle(number, result, None if result is not None else _refusal(code, message))
            elif type(item) is Request:
                self._serve(origin, epoch, item.number, item.order)
            elif type(item) is Cancel:
                running = self._running.get((origin, item.number))
                if running is not None:
                    running.cancel()
            elif type(item) is Forget:
                self._forget_guest(origin, item.goal_id)

    async def close(self) -> None:
        """Stop sending and running."""
        ending: list[asyncio.Future[Any]] = [*self._senders.values(), *self._running.values(), *self._forgetting]
        for one in ending:
            one.cancel()
        if ending:
            await asyncio.wait(ending)

    def _serve(self, origin: str, epoch: int, number: int, order: TaskOrder) -> None:
        mine = self._placement
        is_older = mine.membership.epoch > epoch and not order.private  # Those stay where they were placed first.
        if is_older and mine.owner(order.agent).host != self._host:
            # The sender goes by an older membership: it will have the newer one by the time it asks again.
            self._post(origin, Reply(number, None, "unavailable", f"{order.agent} belongs to another host now"))
            return
        if order.private:
            self._guests.setdefault(origin, {})[order.goal_id] = None
        running = self._running[origin, number] = self._runner.run(order, is_local=False)
        running.tell(functools.partial(self._served, origin, number))

    def _served(self, origin: str, number: int, running: Promise[TaskResult]) -> None:
        self._running.pop((origin, number), None)
        if running.cancelled():
            return  # Nobody waits for it.
        error = running.exception()
        if error is None:
            self._post(origin, Reply(number, running.result()))
        elif isinstance(error, NexusError):
            self._post(origin, Reply(number, None, error.code, error.message))
        else:
            log.error("task.failed", error_type=type(error).__name__, exc_info=error)
            self._post(origin, Reply(number, None, "unavailable", "the task broke off; the log says why"))

    def _post(self, host: str, item: Item) -> None:
        if self._has_left(host) and self._placement.membership.epoch:
            if isinstance(item, Request):
                raise UnavailableError(f"host {host} has left", host=host)
            return
        waiting = self._outgoing.get(host)
        if waiting is None:
            waiting = self._outgoing[host] = _Waiting()
        # A reply always has its place: there are no more of them than requests that were taken in.
        if waiting.is_full and isinstance(item, Request):
            raise ResourceExhaustedError(f"too much waits for host {host}", retry_after_s=1.0)
        waiting.add(item)
        if host not in self._newcomers:  # Those wait for the membership that says where they are.
            self._begin_to_send(host)

    def _begin_to_send(self, host: str) -> None:
        sender = self._senders.get(host)
        if sender is None or sender.done():
            self._senders[host] = asyncio.get_running_loop().create_task(self._send(host), name=f"parcels to {host}")

    async def _send(self, host: str) -> None:
        # One turn of the loop lets everybody who is about to post to this host do so: that is the whole batching.
        await asyncio.sleep(0)
        while (waiting := self._outgoing.get(host)) is not None and waiting.items:
            member = self._members.get(host)
            items = waiting.take_parcel()
            metrics.record("nexus_parcel_items", len(items))
            try:
                if member is None:
                    raise UnavailableError(f"host {host} has left", host=host)
                await self._carrier.carry(member, self._host, self._placement.membership.epoch, items)
                metrics.count("nexus_parcels_total", direction="out", result="success")
            except NexusError as error:
                metrics.count("nexus_parcels_total", direction="out", result="error")
                log.warning("parcel.undelivered", to=host, items=len(items), error=str(error))
                await self._undelivered(host, items, error)

    async def _undelivered(self, host: str, items: Sequence[Item], error: NexusError) -> None:
        """Tell who asked that nobody knows; keep replies as long as the other host is a member: it waits for them."""
        unknown = error if isinstance(error, UnavailableError) else UnavailableError(error.message, host=host)
        for item in items:
            if isinstance(item, Request):
                self._settle(item.number, None, unknown)
        if host in self._members:
            kept = [item for item in items if not isinstance(item, Request)]
            if not isinstance(error, UnavailableError):  # As it is it will never be taken.
                kept = [Reply(item.number, None, error.code, error.message) for item in kept if isinstance(item, Reply)]
            self._outgoing[host].put_back(kept)
            await asyncio.sleep(_CARRY_AGAIN_S)

    def _settle(self, number: int, result: TaskResult | None, error: NexusError | None) -> None:
        sent = self._asked.pop(number, None)
        if sent is None:
            return  # Nobody waits for it any more.
        if result is not None:
            self._runner.take_in(sent.order, result)
        sent.resolve(result, error)


def _refusal(code: str, message: str) -> NexusError:
    return ResourceExhaustedError(message) if code == "resource_exhausted" else UnavailableError(message)
