"""The straightforward way to serve a registry on Ray Serve, as tutorials show it."""

from typing import Any, cast

import mlflow
import pandas as pd
from fastapi import FastAPI
from pydantic import create_model
from ray import serve
from ray.serve import Application, Deployment


def build(model: str) -> Application:
    """Serve the versions of a model: FastAPI, a model made from the signature, Ray's own multiplexing."""
    app = FastAPI()
    signature = mlflow.models.get_model_info(f"models:/{model}/1").signature
    row_type: Any = create_model("Row", **_fields(signature.inputs))
    answer_type: Any = create_model("Answer", **_fields(signature.outputs))

    # Without this setting Ray admits five requests at a time.
    @serve.deployment(max_ongoing_requests=1100)
    @serve.ingress(app)
    class Straightforward:
        @serve.multiplexed(max_num_models_per_replica=2)  # type: ignore[untyped-decorator]
        async def load(self, version: str) -> Any:
            return mlflow.pyfunc.load_model(f"models:/{model}/{version}")

        @app.post("/serve", response_model=list[answer_type])
        async def predict(self, row: row_type) -> Any:
            version = serve.get_multiplexed_model_id() or "1"
            loaded = await self.load(version)
            return loaded.predict(pd.DataFrame([row.model_dump()]))

    return cast(Deployment, Straightforward).bind()


def _fields(schema: Any) -> dict[str, Any]:
    return {column.name: (column.type.to_python(), ...) for column in schema}
