"""A real Dask scheduler and two workers on the loopback interface."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import qcompiler
from qcompiler.sim.errors import ExplorationError

pytest.importorskip("optuna")
pytest.importorskip("plotly")
distributed = pytest.importorskip("distributed")


pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class LocalCluster:
    """`dask scheduler` and `dask worker` as processes of their own, as on real machines."""

    def __init__(self, folder: Path) -> None:
        self.folder, port = folder, free_port()
        self.address = f"tcp://127.0.0.1:{port}"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.start("scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard")
        self.workers = [self.worker() for _ in range(2)]

    def start(self, kind: str, *options: str) -> subprocess.Popen[bytes]:
        log = (self.folder / f"{kind}-{len(self.processes)}.log").open("wb")
        process = subprocess.Popen(
            [sys.executable, "-m", "dask", kind, *options], stdout=log, stderr=log, cwd=self.folder
        )
        self.processes.append(process)
        return process

    def worker(self) -> subprocess.Popen[bytes]:
        # No nanny: killing the process is losing the worker for good.
        return self.start("worker", self.address, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--host",
                          "127.0.0.1", "--local-directory", str(self.folder))  # fmt: skip

    def wait(self) -> None:
        with distributed.Client(self.address, timeout=60, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=60)

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    found = LocalCluster(tmp_path_factory.mktemp("dask"))
    try:
        found.wait()
        yield found
    finally:
        found.stop()


def files(directory: Path) -> dict[str, bytes]:
    names = ("points.csv", "summary.json", "pareto.html")
    return {n: (directory / n).read_bytes() for n in names}


def test_a_cluster_gives_the_same_bytes_and_so_when_a_worker_dies(
    digits: Path, space: Path, tmp_path: Path, cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"space": space, "simulate": False}
    qcompiler.explore(digits, output=tmp_path / "here", **options)
    qcompiler.explore(digits, output=tmp_path / "there", cluster=cluster.address, **options)
    assert files(tmp_path / "here") == files(tmp_path / "there")

    from qcompiler.exploration import samplers
    from qcompiler.exploration.storage import Storage

    monkeypatch.setattr(samplers, "CHUNK", 4)  # many tasks, so that the killed worker holds some
    written: list[int] = []
    write = Storage.write

    def write_and_kill(self: Storage, kind: str, first: int, *rest: Any) -> None:
        write(self, kind, first, *rest)
        written.append(first)
        if len(written) == 2:
            os.kill(cluster.workers[0].pid, signal.SIGKILL)

    monkeypatch.setattr(Storage, "write", write_and_kill)
    qcompiler.explore(digits, output=tmp_path / "killed", cluster=cluster.address, **options)
    assert cluster.workers[0].wait() == -signal.SIGKILL and len(written) > 4
    assert files(tmp_path / "killed") == files(tmp_path / "here")


def test_nobody_answers(digits: Path, space: Path, tmp_path: Path) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    begin = time.monotonic()
    with pytest.raises(ExplorationError) as error:
        qcompiler.explore(digits, space=space, output=tmp_path / "out", cluster=address)
    assert str(error.value) == (
        f"no Dask scheduler answers at {address}; start one with `dask scheduler`, workers with `dask worker {address}`"
    )
    assert time.monotonic() - begin < 30 and not (tmp_path / "out").exists()
