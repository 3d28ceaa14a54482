"""The floor: endpoints without a model, in the same cluster behind the same proxy.

What they answer has the form of the real answer, and is right for the one row that the load sends.
"""

from typing import Any, cast

from fastapi import FastAPI
from pydantic import BaseModel
from ray import serve
from ray.serve import Application, Deployment

#: As many as registry_serve's own deployment admits.
_ONGOING = 1100


class Row(BaseModel):
    """What is sent."""

    prompt: str


class Answer(BaseModel):
    """What is answered for a row."""

    text: str


_ANSWER = [Answer(text="en: The weather is lovely today, 0")]
_ANSWER_BYTES = b'[{"text":"en: The weather is lovely today, 0"}]'


def _build() -> FastAPI:
    app = FastAPI()

    @app.post("/serve")
    async def predict(row: Row) -> list[Answer]:
        return _ANSWER

    return app


def _build_raw() -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        while (await receive()).get("more_body"):
            pass
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(_ANSWER_BYTES)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": _ANSWER_BYTES})

    return app


def fastapi(model: str) -> Application:
    """Check the row with pydantic, answer a constant: what FastAPI on Ray Serve costs."""

    @serve.deployment(max_ongoing_requests=_ONGOING)
    @serve.ingress(_build)
    class EmptyFastAPI:
        pass

    return cast(Deployment, EmptyFastAPI).bind()


def asgi(model: str) -> Application:
    """Read the body, answer a constant: what Ray Serve costs."""

    @serve.deployment(max_ongoing_requests=_ONGOING)
    @serve.ingress(_build_raw)
    class EmptyASGI:
        pass

    return cast(Deployment, EmptyASGI).bind()
