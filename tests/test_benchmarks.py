"""The benchmarks' own arithmetic, and that what they send has the answer they expect. Nothing here is timed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import mlflow
import pandas as pd
import psutil
import pytest

from benchmarks import dialects, figures, memory, models, processes, report, wrk
from benchmarks.metronome import Metronome
from benchmarks.servers import SERVERS

SAID_BY_WRK = """Running 2s test @ http://127.0.0.1:8000/serve
  1 threads and 16 connections
  4000 requests in 2.00s, 1.00MB read
Requests/sec:   2000.00

{"requests": 4000, "duration": 2000000, "connect": 0, "read": 1, "write": 0, "status": 2, "timeout": 3, \
"mean": 7990.5, "p50": 7500, "p95": 9000, "p99": 12345, "max": 20000}
"""


def record(server, number, connections, rate, errors=0, model="text"):
    return {
        "model": model,
        "server": server,
        "round": number,
        "connections": connections,
        "requests_per_s": rate,
        "p50_ms": 1.0,
        "p95_ms": 2.0,
        "p99_ms": 3.0,
        "requests": 10,
        "errors": errors,
    }


def test_wrk_s_report_is_read_in_requests_per_second_and_milliseconds():
    load = wrk.parse(SAID_BY_WRK)
    assert load.requests_per_s == 2000
    assert (load.mean_ms, load.p50_ms, load.p95_ms, load.p99_ms) == (7.9905, 7.5, 9.0, 12.345)
    assert load.errors == 1 + 2 + 3


@pytest.mark.parametrize("said", ["", "unable to connect", SAID_BY_WRK.replace("4000,", "0,")])
def test_a_run_of_wrk_without_answers_is_a_failure(said):
    with pytest.raises(wrk.LoadFailed):
        wrk.parse(said)


def test_a_body_that_would_end_its_lua_string_is_refused():
    assert '{"prompt": "]]"}' in wrk.script(b'{"prompt": "]]"}')
    with pytest.raises(ValueError, match="Lua"):
        wrk.script(b"]==]")


def test_ratios_are_taken_within_a_round():
    # The machine was twice as fast in the second round: ratios of medians would say 3.
    records = [record("ours", 1, 16, 100), record("other", 1, 16, 50)]
    records += [record("ours", 2, 16, 200), record("other", 2, 16, 100)]
    records += [record("ours", 3, 16, 300), record("other", 3, 16, 50)]
    assert figures.ratios(records, "ours") == {("text", "other", 16): 2.0}


def test_a_measurement_with_errors_counts_for_nothing():
    records = [record("ours", 1, 1, 100), record("other", 1, 1, 10, errors=1), record("other", 2, 1, 50)]
    assert figures.medians(records, "requests_per_s", "server") == {("ours",): 100, ("other",): 50}
    assert figures.ratios(records, "ours") == {}


@pytest.mark.parametrize(("percent", "expected"), [(50, 50), (99, 99), (100, 100), (1, 1), (0.5, 1)])
def test_a_percentile_is_one_of_the_values(percent, expected):
    assert figures.percentile(range(1, 101), percent) == expected


def test_growth_compares_quarters_after_the_first_loads():
    samples = [{"loads": n, "rss_mib": 900, "fds": 9, "threads": 9, "files": 9} for n in (10, 20, 30, 40)]
    samples += [{"loads": n, "rss_mib": 100, "fds": 5, "threads": 4, "files": 0} for n in (50, 60)]
    samples += [{"loads": n, "rss_mib": 105, "fds": 7, "threads": 4, "files": 0} for n in (70, 80)]
    grown = memory.growth(samples, settled=50)
    assert grown == {"rss_growth": 0.05, "fds_growth": 2, "threads_growth": 0, "files_growth": 0}


@pytest.mark.parametrize("server", SERVERS.values(), ids=SERVERS)
def test_every_server_is_asked_for_rows_it_can_be_held_to(server):
    for model, dialect in server.dialects.items():
        workload = dialects.WORKLOADS[model]
        for count in (1, 3):
            assert len(workload.rows(count)) == len(workload.answers(count)) == count
            assert json.loads(dialect.encode(workload.rows(count)))
            wrk.script(dialect.encode(workload.rows(count)))
        assert dialect.path(model).startswith("/")


@pytest.mark.parametrize(
    ("dialect", "content"),
    [
        (dialects.NATIVE, [0, 2]),
        (dialects.ROWS, [0, 2]),
        (dialects.INVOCATIONS, {"predictions": [0, 2]}),
        (dialects.OPEN_INFERENCE, {"outputs": [{"name": "output-1", "shape": [2, 1], "data": [0, 2]}]}),
    ],
)
def test_predictions_are_found_in_every_form_of_answer(dialect, content):
    assert dialect.decode(json.dumps(content).encode()) == [0, 2]


def test_open_inference_gets_one_typed_tensor_for_each_column():
    body = json.loads(dialects.OPEN_INFERENCE.encode([{"a": 1.5, "b": "x"}, {"a": 2.5, "b": "y"}]))
    assert body["inputs"] == [
        {"name": "a", "shape": [2, 1], "datatype": "FP64", "data": [1.5, 2.5]},
        {"name": "b", "shape": [2, 1], "datatype": "BYTES", "data": ["x", "y"]},
    ]


def test_the_text_model_answers_what_the_servers_are_held_to(tmp_path):
    mlflow.pyfunc.save_model(tmp_path / "model", python_model=models.Phrase(), pip_requirements=[])
    loaded = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    assert loaded.predict(pd.DataFrame(dialects.TEXT.rows(5))) == dialects.TEXT.answers(5)


def test_the_iris_model_answers_what_the_servers_are_held_to():
    from sklearn.linear_model import LogisticRegression

    from benchmarks.registry import iris_frame

    frame, species = iris_frame()
    fitted = LogisticRegression(max_iter=1000).fit(frame, species)
    assert fitted.predict(pd.DataFrame(dialects.IRIS.rows(4))).tolist() == dialects.IRIS.answers(4)


def test_tables_show_medians_ratios_and_what_is_void():
    records = [record("ours", 1, 1, 1000), record("mlflow", 1, 1, 250), record("litserve", 1, 1, 1, errors=3)]
    rates, ratios, void = map(report.markdown, report.tables({"throughput": {"results": records}}))
    assert "| text | registry_serve | 1,000<br>1.0 / 2.0 / 3.0 |" in rates
    assert "| text | mlflow models serve | 4.00 |" in ratios
    assert "| text | litserve | 1 | 1 | 3 | 10 |" in void


def test_a_server_is_ended_with_what_it_started_even_outside_its_process_group(tmp_path):
    child = "import time; time.sleep(600)"
    parent = (
        f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True); "
        "print('up', flush=True); time.sleep(600)"
    )
    with processes.started("test", [sys.executable, "-c", parent], {}) as running:
        while "up" not in running.last_words():
            running.require_alive()
        everything = running.everything()
        assert len(everything) == 2
    assert not any(psutil.pid_exists(each.pid) and each.is_running() for each in everything)


def test_a_server_that_ends_by_itself_is_told_with_its_last_words():
    with processes.started("test", [sys.executable, "-c", "raise SystemExit('no such model')"], {}) as running:
        running.process.wait()
        with pytest.raises(processes.ServerFailed, match="no such model"):
            running.require_alive()


def test_an_interrupted_measurement_leaves_no_process_behind(tmp_path):
    code = (
        "import signal, sys, time\nfrom benchmarks.processes import started\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        "with started('test', [sys.executable, '-c', 'import time; time.sleep(600)'], {}) as running:\n"
        "    print(running.process.pid, flush=True)\n    time.sleep(600)\n"
    )
    measuring = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    server = int(measuring.stdout.readline())
    assert psutil.pid_exists(server)
    os.kill(measuring.pid, signal.SIGINT)
    measuring.communicate(timeout=60)
    assert not psutil.pid_exists(server)


class Echo(BaseHTTPRequestHandler):
    """Answers 200, or what the body says."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        status = int(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.mark.parametrize(("body", "wrong"), [(b"200", False), (b"503", True)])
def test_a_metronome_keeps_every_latency_and_counts_what_is_not_200(body, wrong):
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        begin = time.monotonic()
        with Metronome(server.server_address[1], "/", body) as metronome:
            while len(metronome.samples) < 20:
                time.sleep(0.01)
        server.shutdown()
    assert metronome.errors == (len(metronome.samples) if wrong else 0)
    assert len(metronome.between(begin, time.monotonic())) == len(metronome.samples)
    assert metronome.between(0, begin) == []
