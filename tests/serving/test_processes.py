"""A service of several real processes on one port: as one process, and one may die."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from serve_kit import Server, wait_for
from shop_kit import Shop, turned  # noqa: F401
from test_trials import _odd_fails, _queries

K = 4
FORCE = ("--force", "--reason", "drill")


def _children(server: Server) -> list[int]:
    """The processes that answer."""
    pid = server.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    lines = {int(child): Path(f"/proc/{child}/cmdline").read_bytes() for child in children}
    return sorted(child for child, line in lines.items() if b"spawn_main" in line)


def _metrics(server: Server) -> dict[str, float]:
    """The samples of ``/metrics`` by their names and labels."""
    text = server.ask("/metrics").body.decode()
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def _answered(server: Server) -> float:
    return _metrics(server)['compatctl_requests_total{side="current",status="200"}']


@contextlib.contextmanager
def _clients(server: Server, query: bytes, count: int = 4) -> Iterator[Counter[object]]:
    """Clients that ask all the time, each request on a connection of its own; what they got."""
    got: Counter[object] = Counter()
    stop, lock = threading.Event(), threading.Lock()

    def work() -> None:
        while not stop.is_set():
            try:
                reply = server.ask(f"/v1/search?k={K}", query)
                seen: object = reply.status
                if reply.status == 200:
                    seen = (200, reply.json["generation"], reply.json["query_model"])
            except (OSError, http.client.HTTPException) as error:
                seen = type(error).__name__
            with lock:
                got[seen] += 1

    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield got
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_killed_process_is_started_again_and_others_answer(shop: Shop) -> None:
    """What it was answering is lost, at most one request a client; its counts are not, but for the
    last second; SIGTERM ends all, and the log has whole lines of all."""
    query = _queries(shop, 1)[0]
    with Server(shop.folder, "--processes", 2, "--log", "answers.jsonl") as server:
        assert "by 2 processes" in server.said
        first = _children(server)
        assert len(first) == 2
        with _clients(server, query) as got:
            wait_for(lambda: sum(got.values()) > 50)
            time.sleep(1.5)
            before = _answered(server)
            os.kill(first[0], signal.SIGKILL)
            at = sum(got.values())
            wait_for(lambda: sum(got.values()) > at + 50)
            wait_for(lambda: len(_children(server)) == 2 and first[0] not in _children(server))
            wait_for(lambda: _metrics(server)["compatctl_processes"] == 2)
            assert _answered(server) >= before
        lost = sum(count for seen, count in got.items() if isinstance(seen, str))
        assert lost <= 4
        right = [count for seen, count in got.items() if isinstance(seen, tuple)]
        assert len(right) == 1
        assert sum(right) == sum(got.values()) - lost
        assert before < _answered(server) <= sum(right) + lost
        children = _children(server)
        code, ended = server.stop()
    assert (code, ended["unlogged"]) == (0, 0)
    assert re.search(rf"process {first[0]} ended: signal 9; another one starts", server.said)
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    lines = shop.path("answers.jsonl").read_text().splitlines()
    assert all(json.loads(line)["hits"] for line in lines)
    assert ended["logged"] <= len(lines) <= sum(right) + lost
    assert "Traceback" not in server.said


def test_the_metrics_are_those_of_all_processes(shop: Shop) -> None:
    """Whichever process is asked: the sum of the answers, the shares of one generation."""
    query = _queries(shop, 1)[0]
    with Server(shop.folder, "--processes", 3) as server:
        for _ in range(60):
            assert server.ask("/v1/search", query).status == 200
        for _ in range(20):
            assert server.ask("/v1/search", b"no image").status == 422

        def told() -> bool:
            seen = _metrics(server)
            return (
                seen['compatctl_requests_total{side="current",status="200"}'] == 60
                and seen['compatctl_requests_total{side="none",status="422"}'] == 20
            )

        wait_for(told, 10)
        for _ in range(10):
            assert told()
        seen = _metrics(server)
        assert seen['compatctl_search_seconds_count{side="current"}'] == 60
        assert seen['compatctl_search_seconds_bucket{le="+Inf",side="current"}'] == 60
        assert seen["compatctl_processes"] == 3
        assert sum(v for n, v in seen.items() if n.startswith("compatctl_gallery_share")) == 1.0
        given = ("--model", shop.path("new.onnx"), *FORCE)
        assert shop.run("deploy", *given).code == 0
        wait_for(lambda: _metrics(server)["compatctl_generation"] == 2)
        models = [n for n in _metrics(server) if n.startswith("compatctl_query_model{")]
        assert len(models) == 1, "the model before is in no process"
        code, ended = server.stop()
    assert (code, ended["answered"], ended["switches"], ended["generation"]) == (0, 60, 1, 2)


def test_all_processes_follow_the_store(shop: Shop) -> None:
    """During deploys and rollbacks no request fails, and each answer is of one generation."""
    query = _queries(shop, 1)[0]
    with Server(shop.folder, "--processes", 2) as server, _clients(server, query) as got:
        for number in range(2):
            assert shop.run("deploy", "--model", shop.path("new.onnx"), *FORCE).code == 0
            assert shop.run("rollback").code == 0
            wait_for(lambda: _metrics(server)["compatctl_generation"] == 2 * number + 3)  # noqa: B023
    assert all(isinstance(seen, tuple) for seen in got), got
    model_of = {seen[1]: seen[2] for seen in got if isinstance(seen, tuple)}
    assert len(model_of) == len(got)


def test_a_candidate_that_fails_loses_the_traffic_in_all_processes(shop: Shop) -> None:
    """Ten failures are enough, whichever processes they come to; then none gives it a query any
    more, nor one that is started later."""
    _odd_fails(shop.path("odd.onnx"))
    query = _queries(shop, 1)[0]
    options = ("--traffic", "odd.onnx=100%", "--allow-unverified", "--processes", 2)
    with Server(shop.folder, *options) as server:
        for _ in range(12):
            assert server.ask("/v1/search", query).status == 200
        wait_for(lambda: _metrics(server)["compatctl_traffic_share"] == 0.0)
        name = 'compatctl_traffic{result="failed",side="candidate"}'
        wait_for(lambda: 10 <= _metrics(server)[name] <= 12)
        for _ in range(20):
            told = server.status()["traffic"]
            assert "of its answers failed" in told["stopped"]
        children = _children(server)
        os.kill(children[1], signal.SIGKILL)
        wait_for(lambda: _metrics(server)["compatctl_processes"] == 2)
        wait_for(lambda: len({*_children(server)} - {*children}) == 1)
        for _ in range(20):
            assert "of its answers failed" in server.status()["traffic"]["stopped"]


@pytest.mark.parametrize("trial", ["--shadow", "--traffic"])
def test_a_process_is_started_again_though_its_trial_cannot_go_on(shop: Shop, trial: str) -> None:
    """Its file is gone, or the store has rows that its report did not judge: it serves without."""
    verified = shop.run("verify", shop.path("old.onnx"), shop.path("new.onnx"))
    assert verified.code == 0, verified.stderr
    query = _queries(shop, 1)[0]
    with Server(shop.folder, trial, "new.onnx=50%", "--processes", 2) as server:
        if trial == "--shadow":
            shop.path("new.onnx").unlink()
        else:
            assert shop.run("deploy", "--model", shop.path("worse.onnx"), *FORCE).code == 0
        first = _children(server)
        os.kill(first[0], signal.SIGKILL)
        wait_for(lambda: first[0] not in _children(server) and len(_children(server)) == 2)
        wait_for(lambda: _metrics(server)["compatctl_processes"] == 2)
        assert server.ask("/v1/search", query).status == 200
        code, _ = server.stop()
    assert code == 0
    assert "this process tries no candidate" in server.said


def test_a_service_goes_on_though_its_temporary_folder_was_removed(
    shop: Shop, tmp_path: Path
) -> None:
    """As cleaners of such folders do: a process that dies then is started again as ever."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with Server(shop.folder, "--processes", 2, TMPDIR=str(temporary)) as server:
        first = _children(server)
        shutil.rmtree(next(temporary.glob("compatctl-serve-*")), ignore_errors=True)
        for child in first:
            os.kill(child, signal.SIGKILL)
        wait_for(lambda: not {*first} & {*_children(server)} and len(_children(server)) == 2)
        wait_for(lambda: _metrics(server)["compatctl_processes"] == 2)
        code, _ = server.stop()
    assert code == 0
    assert not list(temporary.glob("compatctl-serve-*"))


def test_a_full_disk_under_the_metrics_stops_nothing(shop: Shop, tmp_path: Path) -> None:
    """A process that dies is started again; what is asked tells its own metrics meanwhile."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with Server(shop.folder, "--processes", 2, TMPDIR=str(temporary)) as server:
        temporary.rename(tmp_path / "elsewhere")
        temporary.write_text("no folder")
        first = _children(server)
        os.kill(first[0], signal.SIGKILL)
        wait_for(lambda: first[0] not in _children(server) and len(_children(server)) == 2)
        for _ in range(4):
            assert server.ask("/metrics").status == 200
        assert server.process.poll() is None
        temporary.unlink()
        code, _ = server.stop()
    assert code == 0
    assert "the counts of process" in server.said


def test_what_ends_one_process_before_it_answers_ends_the_command(shop: Shop) -> None:
    """With its error and exit code, and no process is left."""
    shop.path("bad.onnx").write_bytes(b"no model")
    one = shop.run("serve", "--port", 0, "--shadow", shop.path("bad.onnx"))
    two = shop.run("serve", "--port", 0, "--shadow", shop.path("bad.onnx"), "--processes", 2)
    assert (one.code, two.code) == (5, 5)
    assert one.stderr == two.stderr
    assert "bad.onnx" in two.stderr


NO_ROOM = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
from compatctl.cli import main
main()
"""


def test_without_a_temporary_folder_the_command_says_so(shop: Shop) -> None:
    """As on a machine whose folders are read-only: exit 5 and what to set, no traceback."""
    command = [sys.executable, "-c", NO_ROOM, "serve", "--port", "0", "--processes", "2"]
    ended = subprocess.run(command, cwd=shop.folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 5, ended.stderr
    assert "no folder for temporary files can be written" in ended.stderr
    assert "TMPDIR" in ended.stderr
    assert "Traceback" not in ended.stderr


EARLY = """
import gc, os, signal
def send(phase, info):
    if phase == "start" and not gc.get_freeze_count() and callable(signal.getsignal({number})):
        if signal.getsignal({number}) is not signal.default_int_handler:
            gc.callbacks.remove(send)
            os.kill(os.getpid(), {number})
gc.callbacks.append(send)
from compatctl.cli import main
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_just_before_the_server_takes_them_is_not_lost(
    shop: Shop, number: signal.Signals
) -> None:
    """It comes while what is loaded is frozen: the service ends, and was never announced."""
    command = [sys.executable, "-c", EARLY.format(number=int(number)), "serve", "--port", "0"]
    ended = subprocess.run(
        command, cwd=shop.folder, capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode == (130 if number == signal.SIGINT else 128 + signal.SIGTERM)
    assert "is served" not in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("delay", [0.0, 0.5])
def test_a_signal_while_they_start_ends_all_quietly(
    shop: Shop, number: signal.Signals, delay: float
) -> None:
    """Ctrl-C of a terminal reaches all processes: exit 130, no traceback, no process left."""
    server = Server(shop.folder, "--processes", 2, start_new_session=True)
    wait_for(lambda: len(_children(server)) == 2)
    time.sleep(delay)
    children = _children(server)
    os.killpg(server.process.pid, number)
    assert server.process.wait(60) == 128 + number
    assert "Traceback" not in server.said
    assert "is served" not in server.said
    wait_for(lambda: not any(Path(f"/proc/{child}").exists() for child in children))


STUCK = """
from compatctl.cli import main
from compatctl.serving import processes
processes.STUCK_S = 4.0
main()
"""


def test_a_process_that_hangs_is_killed_and_started_again(shop: Shop) -> None:
    """One that is stopped and lives; the other one, which beats, goes on, and a long pause of all
    of them, as of a terminal's Ctrl-Z, is no reason to kill any."""
    query = _queries(shop, 1)[0]
    with Server(shop.folder, "--processes", 2, program=("-c", STUCK)) as server:
        first = _children(server)
        for stopped in (*first, server.process.pid):
            os.kill(stopped, signal.SIGSTOP)
        time.sleep(6)
        for stopped in (server.process.pid, *first):
            os.kill(stopped, signal.SIGCONT)
        assert server.ask("/v1/search", query).status == 200
        time.sleep(1)
        assert _children(server) == first
        os.kill(first[0], signal.SIGSTOP)
        wait_for(lambda: first[0] not in _children(server))
        wait_for(lambda: len(_children(server)) == 2)
        assert first[1] in _children(server)
        wait_for(lambda: _metrics(server)["compatctl_processes"] == 2)
        code, _ = server.stop()
    assert code == 0
    assert f"process {first[0]} hangs: it is killed" in server.said
    assert re.search(rf"process {first[0]} ended: signal 9; another one starts", server.said)
    assert str(first[1]) not in server.said


def test_processes_end_with_the_one_that_started_them(shop: Shop) -> None:
    """Though it is killed."""
    with Server(shop.folder, "--processes", 2) as server:
        children = _children(server)
        server.stop(signal.SIGKILL)
    wait_for(lambda: not any(Path(f"/proc/{child}").exists() for child in children), 30)


def test_the_processors_are_divided_among_the_processes(shop: Shop) -> None:
    """``--threads`` says how many compute a batch in each."""

    def threads(*options: object) -> int:
        with Server(shop.folder, *options) as server:
            pid = (_children(server) or [server.process.pid])[0]
            return len(list(Path(f"/proc/{pid}/task").iterdir()))

    few, many = threads("--threads", 1), threads("--threads", 5)
    assert many == few + 4
    if os.cpu_count() == 2:
        one, two = threads("--processes", 2), threads("--processes", 2, "--threads", 2)
        assert two == one + 1
