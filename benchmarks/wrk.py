"""Load from wrk: a closed loop over a fixed number of connections."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

#: What wrk's Lua prints when it is done: one line of JSON, after its own text. Latencies are in microseconds.
_SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = [==[{body}]==]
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\\n{{"requests": %d, "duration": %d, "connect": %d, "read": %d, "write": %d, "status": %d, "timeout": %d, ' ..
    '"mean": %.1f, "p50": %d, "p95": %d, "p99": %d, "max": %d}}\\n',
    summary.requests, summary.duration, e.connect, e.read, e.write, e.status, e.timeout,
    latency.mean, latency:percentile(50), latency:percentile(95), latency:percentile(99), latency.max))
end
"""
_ERRORS = ("connect", "read", "write", "status", "timeout")


class LoadFailed(RuntimeError):
    """wrk is missing or did not say what it measured."""


@dataclass(frozen=True)
class Load:
    """What one run of wrk saw. One with errors counts for nothing.

    Attributes:
        requests_per_s: answered ones.
        mean_ms: latency.
        p50_ms: latency.
        p95_ms: latency.
        p99_ms: latency.
        requests: how many were answered.
        errors: refused or broken connections, statuses of 400 and more, time-outs (2 s).
    """

    requests_per_s: float
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    requests: int
    errors: int

    def as_json(self) -> dict[str, Any]:
        """Return the fields, rounded."""
        return {name: round(value, 3) for name, value in asdict(self).items()}


def script(body: bytes) -> str:
    """Return the Lua that sends a body and reports as JSON."""
    text = body.decode()
    if "]==]" in text:
        raise ValueError("The body would end the Lua string that holds it.")
    return _SCRIPT.format(body=text)


def parse(output: str) -> Load:
    """Read wrk's output.

    Raises:
        LoadFailed: it holds no report, or one of no requests at all.
    """
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if not lines:
        raise LoadFailed(f"wrk reported nothing:\n{output[-1000:]}")
    report = json.loads(lines[-1])
    if not report["requests"] or not report["duration"]:
        raise LoadFailed("Not one request was answered.")
    return Load(
        requests_per_s=report["requests"] / (report["duration"] / 1e6),
        mean_ms=report["mean"] / 1000,
        p50_ms=report["p50"] / 1000,
        p95_ms=report["p95"] / 1000,
        p99_ms=report["p99"] / 1000,
        requests=report["requests"],
        errors=sum(report[kind] for kind in _ERRORS),
    )


def load(url: str, body: bytes, connections: int, seconds: float) -> Load:
    """Send the same request over and over.

    Raises:
        LoadFailed: wrk is not installed or failed.
    """
    program = shutil.which("wrk")
    if program is None:
        raise LoadFailed("wrk is not installed: apt-get install wrk, or make wrk.")
    with tempfile.TemporaryDirectory() as folder:
        lua = Path(folder, "post.lua")
        lua.write_text(script(body))
        done = subprocess.run(
            [program, "-t1", f"-c{connections}", f"-d{max(round(seconds), 1)}s", "-s", str(lua), url],
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds + 30,
        )
    if done.returncode:
        raise LoadFailed(f"wrk ended with code {done.returncode}: {done.stderr[-1000:]}")
    return parse(done.stdout)
