"""What a front door is measured beside: one FastAPI route that reads JSON and answers, and does nothing else.

`python -m uvicorn benchmarks.bare_http:app` serves it alone, `application()` in Ray Serve.
"""

from typing import Any

import orjson
from fastapi import FastAPI, Request
from starlette.responses import Response

app = FastAPI()


@app.post("/v1/goals", status_code=202)
async def take(request: Request) -> Response:
    body = orjson.loads(await request.body())
    return Response(orjson.dumps({"id": "goal-0", "type": body["type"]}), 202, media_type="application/json")


def application() -> Any:
    """Return it for Ray Serve."""
    from ray import serve

    @serve.deployment(name="bare", max_ongoing_requests=256, ray_actor_options={"num_cpus": 0})
    @serve.ingress(app)
    class Bare:
        """One replica."""

    return Bare.bind()
