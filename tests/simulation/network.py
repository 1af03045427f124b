"""The network between the processes: calls that are late, lost, doubled, overtaken, held up, or cut by a death.

Law: a call ends for its caller with the answer, with the error that the other side raised, or with `UnavailableError`,
which says nothing about whether it was carried out. A killed process neither sends nor receives.
"""

import asyncio
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from nexus_ray.core.errors import NexusError, UnavailableError
from tests.simulation.loop import PROCESS, Process, SimLoop


@dataclass(frozen=True, slots=True)
class Weather:
    """What the network is like: shares of messages, and seconds."""

    delay_s: float = 0.001
    slow: float = 0.0
    slow_s: float = 0.5
    lost: float = 0.0
    doubled: float = 0.0


FAIR = Weather()


class Network:
    """Carries calls from process to process."""

    def __init__(
        self,
        loop: SimLoop,
        random: Random,
        weather: Weather,
        tell: Callable[..., None],
        point: Callable[[str], bool],
    ) -> None:
        """`point(where)` may kill the process that is at it, and tells whether that lives on."""
        self._loop = loop
        self._random = random
        self.weather = weather
        self._tell = tell
        self._point = point
        self._cuts: dict[frozenset[str], float] = {}
        self._number = 0

    def cut(self, one: str, other: str, until: float) -> None:
        """Let nothing pass between two processes until a time."""
        self._cuts[frozenset((one, other))] = until

    def calm(self) -> None:
        """Let everything pass from now on, soon and once; what is cut stays so until its time."""
        self.weather = FAIR

    async def call(self, to: Process, what: str, function: Callable[..., Any], *args: Any, sure: bool = False) -> Any:
        """Call a function in another process; `sure` for what is not a network: late, but never lost or doubled.

        Raises:
            NexusError: What the function raised.
            UnavailableError: It is not known whether it was carried out.
        """
        me = PROCESS.get()
        loop = self._loop
        if not self._point(f"before {what}"):
            await loop.create_future()  # Killed: never.
        self._number += 1
        number = self._number
        answer = loop.create_future()
        call = _Call(self, number, me, to, what, function, args, answer, sure)
        call.send()
        if not self._point(f"after {what}"):
            await loop.create_future()
        try:
            return await answer
        finally:
            to.at_death.pop(number, None)

    def passes(self, one: Process, other: Process, sure: bool) -> list[float]:
        """Return after how many seconds a message arrives: once, never, or twice."""
        random, weather = self._random, self.weather
        delay_s = weather.delay_s * (0.2 + random.random())
        if sure:
            return [delay_s]
        cut_until = self._cuts.get(frozenset((one.name, other.name)), 0.0) if self._cuts else 0.0
        if cut_until > self._loop.now:
            # Either sent again until it gets through, or given up.
            return [cut_until - self._loop.now + delay_s] if random.random() < 0.5 else []
        if weather is FAIR:
            return [delay_s]
        luck = random.random()
        if luck < weather.lost:
            return []
        if luck < weather.lost + weather.slow:
            delay_s += weather.slow_s * random.random()
        if random.random() < weather.doubled:
            return [delay_s, delay_s + random.random() * random.random() * 3.0]
        return [delay_s]

    def patience_s(self) -> float:
        """Return after how many seconds a caller gives up a call of which it hears nothing."""
        return self._random.uniform(0.3, 3.0)


class _Call:
    """One call under way."""

    __slots__ = ("_answer", "_args", "_function", "_me", "_network", "_number", "_sure", "_to", "_what")

    def __init__(
        self,
        network: Network,
        number: int,
        me: Process,
        to: Process,
        what: str,
        function: Callable[..., Any],
        args: Any,
        answer: "asyncio.Future[Any]",
        sure: bool,
    ) -> None:
        self._network = network
        self._number = number
        self._me = me
        self._to = to
        self._what = what
        self._function = function
        self._args = args
        self._answer = answer
        self._sure = sure

    def send(self) -> None:
        network, loop, me, to = self._network, self._network._loop, self._me, self._to
        if not me.is_alive:
            return
        if not to.is_alive:
            loop.call_later(network.weather.delay_s, self._break, context=me.context)
            return
        to.at_death[self._number] = self._died
        delays_s = network.passes(me, to, self._sure)
        network._tell("send", to.name, self._what, delays_s)
        for delay_s in delays_s:
            loop.call_later(delay_s, self._arrive, context=to.context)
        if not delays_s:
            loop.call_later(network.patience_s(), self._break, context=me.context)

    def _arrive(self) -> None:
        """In the other process: carry it out."""
        self._network._tell("take", self._me.name, self._what)
        try:
            value = self._function(*self._args)
        except NexusError as error:
            value = error
        if inspect.isawaitable(value):
            self._network._loop.create_task(self._serve(value))
        else:
            self._reply(value)

    async def _serve(self, work: Any) -> None:
        try:
            value = await work
        except NexusError as error:
            value = error
        self._reply(value)

    def _reply(self, value: Any) -> None:
        network, loop = self._network, self._network._loop
        if not self._to.is_alive:
            return
        delays_s = network.passes(self._to, self._me, self._sure)
        for delay_s in delays_s[:1]:
            loop.call_later(delay_s, self._settle, value, context=self._me.context)
        if not delays_s:
            loop.call_later(network.patience_s(), self._break, context=self._me.context)

    def _settle(self, value: Any) -> None:
        if self._answer.done():
            return
        self._network._tell("answer", self._to.name, self._what)
        if isinstance(value, NexusError):
            self._answer.set_exception(type(value)(value.message, **value.details))
        else:
            self._answer.set_result(value)

    def _died(self) -> None:
        self._network._loop.call_later(self._network.weather.delay_s, self._break, context=self._me.context)

    def _break(self) -> None:
        if not self._answer.done():
            self._network._tell("broken", self._to.name, self._what)
            self._answer.set_exception(UnavailableError("the connection broke before the answer came", is_lost=True))
