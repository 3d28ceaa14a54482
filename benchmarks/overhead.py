"""What serving adds to the model's own ``predict``: one row, one connection."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.dialects import Workload
from benchmarks.endpoints import serving
from benchmarks.places import REPOSITORY
from benchmarks.registry import artifacts
from benchmarks.servers import SERVERS
from benchmarks.throughput import WARM_UP_S
from benchmarks.wrk import load

#: Run in a process of its own, as a server would: the frame is built anew for every call, as from a request.
_BARE = """
import json, statistics, sys, time, mlflow, pandas
model, row = mlflow.pyfunc.load_model(sys.argv[1]), json.loads(sys.argv[2])
times = []
end = time.perf_counter() + float(sys.argv[3])
while time.perf_counter() < end:
    begin = time.perf_counter()
    model.predict(pandas.DataFrame([row]))
    times.append(time.perf_counter() - begin)
half = times[len(times) // 2:]
print(statistics.median(half) * 1000)
"""


def measure(workload: Workload, seconds: float, rounds: int, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Return one record for each round: medians in milliseconds, bare and through the endpoint."""
    records = []
    for number in range(1, rounds + 1):
        bare = _bare(workload, seconds)
        with serving(SERVERS["ours"], workload) as endpoint:
            body = endpoint.dialect.encode(workload.rows(1))
            load(endpoint.url, body, 1, WARM_UP_S)
            figures = load(endpoint.url, body, 1, seconds)
        overhead = figures.p50_ms - bare
        record = {"model": workload.model, "round": number, "bare_ms": round(bare, 3), "served_ms": figures.p50_ms}
        records.append({**record, "overhead_ms": round(overhead, 3), "errors": figures.errors})
        tell(
            f"{workload.model} round {number}: predict {bare:.3f} ms, "
            f"served {figures.p50_ms:.3f} ms, overhead {overhead:.3f} ms"
        )
    return records


def _bare(workload: Workload, seconds: float) -> float:
    arguments = [str(artifacts(workload.model)), json.dumps(workload.rows(1)[0]), str(seconds)]
    done = subprocess.run(
        [sys.executable, "-c", _BARE, *arguments], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    return float(done.stdout)
