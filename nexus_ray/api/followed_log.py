"""A job's log, followed through the door to Ray: what Ray tells goes on to the caller as it comes.

Law: whoever may look at jobs may follow their logs, for as long as his session is good and nobody has suspended it.
Nothing that a caller says goes on to Ray, and no more is read from Ray than the caller takes.
"""

import asyncio
from pathlib import Path
from urllib.parse import quote

from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidHandshake, InvalidStatus

from nexus_ray.config import RuntimeSettings
from nexus_ray.core.errors import NexusError, NotFoundError, ResourceExhaustedError, UnavailableError
from nexus_ray.core.identity import Session
from nexus_ray.observe.operation import observe
from nexus_ray.runtime.front import FrontDoor
from nexus_ray.runtime.ray_desk import read_ray_token

_PATH = "api/jobs/{}/logs/tail"
_OPEN_S = 10.0  # Ray looks for the agent of the job's node before it answers.
_MESSAGE_BYTES_MAX = 16 * 1024 * 1024  # Ray sends what was written since it last looked, which may be much.
_MESSAGES_WAITING_MAX = 4
_LOOK_S = 1.0  # As late as anybody else who is suspended is cut off.
_BAD_SESSION, _GOING_AWAY = 1008, 1011


class FollowedLogs:
    """The logs that are followed through one gateway."""

    def __init__(self, front: FrontDoor, settings: RuntimeSettings, ray_token: Path | None) -> None:
        self._front = front
        self._settings = settings
        self._ray_token = ray_token
        self._under_way = 0

    async def follow(self, websocket: WebSocket, session: Session, job: str) -> None:
        """Pass a log on until it ends, the caller goes or his session is good no more.

        Raises:
            NexusError: Refused, before anything was passed on.
        """
        path = _PATH.format(quote(job, safe=""))
        self._front.ray_desk.permit(session, "dashboard:read", path)
        if self._under_way >= self._settings.dashboard_followers_max:
            raise ResourceExhaustedError("too many logs are followed at one time", retry_after_s=1.0)
        self._under_way += 1
        try:
            async with await self._ask(path) as log:
                await websocket.accept()
                with observe("ray.follow_log", log=True):
                    await self._pass_on(websocket, session, log)
        finally:
            self._under_way -= 1

    async def _ask(self, path: str) -> ClientConnection:
        token = await read_ray_token(self._ray_token)
        try:
            return await connect(
                f"ws://127.0.0.1:{self._settings.dashboard_port}/{path}",
                additional_headers={"Authorization": f"Bearer {token}"}, user_agent_header="nexus", proxy=None,
                compression=None, open_timeout=_OPEN_S, max_size=_MESSAGE_BYTES_MAX, max_queue=_MESSAGES_WAITING_MAX,
            )  # fmt: skip
        except InvalidStatus as error:
            if error.response.status_code in (400, 404):
                raise NotFoundError("Ray knows no submitted job of this name") from None
            raise UnavailableError("Ray's dashboard does not show this log") from None
        except (OSError, TimeoutError, InvalidHandshake):
            raise UnavailableError("Ray's dashboard cannot be reached from here") from None

    async def _pass_on(self, websocket: WebSocket, session: Session, log: ClientConnection) -> None:
        leaving = asyncio.ensure_future(_left(websocket))
        coming = asyncio.ensure_future(log.recv())
        try:
            while not leaving.done():
                await asyncio.wait((leaving, coming), timeout=_LOOK_S, return_when=asyncio.FIRST_COMPLETED)
                await self._front.access.check(session)
                if coming.done():
                    text = coming.result()
                    await websocket.send_text(text if isinstance(text, str) else text.decode(errors="replace"))
                    coming = asyncio.ensure_future(log.recv())
        except ConnectionClosed as error:
            await websocket.close(_GOING_AWAY if isinstance(error, ConnectionClosedError) else 1000)
        except NexusError:
            await websocket.close(_BAD_SESSION, "this session is good no more")
        except WebSocketDisconnect:
            pass
        finally:
            for task in (leaving, coming):
                task.cancel()
            await asyncio.wait((leaving, coming))


async def _left(websocket: WebSocket) -> None:
    """Return when the caller has gone; what he says until then is for nobody."""
    while (await websocket.receive())["type"] != "websocket.disconnect":
        pass
