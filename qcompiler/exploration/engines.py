"""Where points are evaluated: in this process, on a pool of processes, or on a Dask cluster.

An engine runs tasks `(key, points)` and yields `(key, outcomes)` as they are done. Outcomes depend on the points alone,
so that neither the number of workers nor the order in which they finish changes a result. A worker is given several
tasks at a time, since a point costs less among many.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from qcompiler.exploration.evaluation import Context, Work
from qcompiler.sim.errors import ExplorationError
from qcompiler.sim.evaluate import BLOCK as TOGETHER
from qcompiler.sim.explore.merit import Outcome

Key = TypeVar("Key")
Task = tuple[Key, Sequence[Any]]
Load = list[Task[Key]]  # for a worker at a time
ATTEMPTS = 3
AHEAD = 2  # loads in flight a worker


def loads(tasks: Iterable[Task[Key]], points: int, workers: int) -> Iterator[Load[Key]]:
    """The tasks, which have so many points in all, in equal loads: of about `TOGETHER` points or fewer, and two for
    each of several workers, so that they end together and something is kept early. points 0: one by one."""
    rounds = max(-(-points // (workers * TOGETHER)), 1 if workers == 1 else 2)
    load: Load[Key] = []
    for task in tasks:
        load.append(task)
        if sum(len(own) for _, own in load) * workers * rounds >= points:
            yield load
            load = []
    if load:
        yield load


def split(load: Load[Key], outcomes: list[Outcome]) -> Iterator[tuple[Key, list[Outcome]]]:
    """The outcomes of each of a load's tasks."""
    position = 0
    for key, points in load:
        yield key, outcomes[position : position + len(points)]
        position += len(points)


class Engine(AbstractContextManager["Engine"]):
    """Evaluates in this process."""

    workers = 1

    def __init__(self, context: Context) -> None:
        self.context = context

    def run(self, work: Work, tasks: Iterable[Task[Key]], points: int) -> Iterator[tuple[Key, list[Outcome]]]:
        """The outcomes of each task, in any order. points: in all, 0 where they gain nothing from company."""
        for load in loads(tasks, points, self.workers):
            yield from split(load, work(self.context, _points(load)))

    def __exit__(self, *_: object) -> None:
        pass


def _points(load: Load[Key]) -> list[Any]:
    return [point for _, points in load for point in points]


_context: Context | None = None  # of a pool's worker process


def _initialise(context: Context) -> None:
    global _context
    _context = context


def _in_worker(work: Work, items: Sequence[Any]) -> list[Outcome]:
    assert _context is not None
    return work(_context, items)


class Pool(Engine):
    """Evaluates on processes of this machine; one that dies is replaced, and its task given out again."""

    def __init__(self, context: Context, workers: int) -> None:
        super().__init__(context)
        self.workers = workers
        self._pool = self._start()

    def _start(self) -> ProcessPoolExecutor:
        # spawn: a fork would inherit the threads of TVM and ONNX Runtime in whatever state they are
        return ProcessPoolExecutor(
            self.workers, multiprocessing.get_context("spawn"), initializer=_initialise, initargs=(self.context,)
        )

    def run(self, work: Work, tasks: Iterable[Task[Key]], points: int) -> Iterator[tuple[Key, list[Outcome]]]:
        source = loads(tasks, points, self.workers)
        pending: dict[Future[list[Outcome]], Load[Key]] = {}
        again: list[Load[Key]] = []
        failures = 0
        while True:
            try:
                while len(pending) < AHEAD * self.workers:
                    load = again.pop() if again else next(source, None)
                    if load is None:
                        break
                    again.append(load)  # not lost should submitting fail
                    pending[self._pool.submit(_in_worker, work, _points(load))] = again.pop()
                if not pending:
                    return
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    outcomes = future.result()
                    yield from split(pending.pop(future), outcomes)
            except BrokenProcessPool:
                failures += 1
                if failures >= ATTEMPTS:
                    raise ExplorationError(
                        f"worker processes died {failures} times (killed, or out of memory); what was evaluated is "
                        "kept: run the same command again, with fewer --workers"
                    ) from None
                again += pending.values()
                pending.clear()
                self._pool.shutdown(wait=False, cancel_futures=True)
                self._pool = self._start()

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


class Cluster(Engine):
    """Evaluates on the workers of a running Dask scheduler, which gives the tasks of a lost worker to others."""

    def __init__(self, context: Context, address: str) -> None:
        super().__init__(context)
        try:
            from distributed import Client
        except ImportError:
            raise ExplorationError(
                "--cluster needs Dask, which is not installed: pip install 'qcompiler[cluster]'"
            ) from None
        try:
            self._client: Any = Client(address, timeout=10, set_as_default=False)
        except (OSError, ValueError, TimeoutError):
            raise ExplorationError(
                f"no Dask scheduler answers at {address}; start one with `dask scheduler`, workers with `dask worker "
                f"{address}`"
            ) from None
        try:
            self._check()
            # A task, not scattered data: the scheduler makes it again should the workers that hold it be lost.
            self._shared = self._client.submit(_given, context, pure=False)
        except BaseException:
            self._client.close()
            raise

    def _check(self) -> None:
        import qcompiler

        versions = self._client.run(_version)
        if not versions:
            raise ExplorationError("the cluster has no workers; start some with `dask worker`")
        self.workers = len(versions)
        wrong = {a: v for a, v in versions.items() if v != qcompiler.__version__}
        if wrong:
            address, version = next(iter(wrong.items()))
            raise ExplorationError(
                f"worker {address} has qcompiler {version}, this is {qcompiler.__version__}; install the same on all"
            )

    def run(self, work: Work, tasks: Iterable[Task[Key]], points: int) -> Iterator[tuple[Key, list[Outcome]]]:
        from distributed import as_completed

        source, pending = loads(tasks, points, self.workers), dict[str, Load[Key]]()
        arrivals = as_completed(loop=self._client.loop, with_results=True, raise_errors=False)

        def submit() -> bool:
            load = next(source, None)
            if load is not None:
                future = self._client.submit(work, self._shared, _points(load), pure=False, retries=ATTEMPTS)
                pending[future.key] = load
                arrivals.add(future)
            return load is not None

        for _ in range(AHEAD * self.workers):
            if not submit():
                break
        for future, outcomes in arrivals:
            if future.status != "finished":
                problem = future.exception()
                raise ExplorationError(
                    f"the cluster could not evaluate a part: {type(problem).__name__}: {problem}; what was evaluated "
                    "is kept: run the same command again"
                )
            yield from split(pending.pop(future.key), outcomes)
            submit()

    def __exit__(self, *_: object) -> None:
        self._client.close()


def _given(context: Context) -> Context:
    return context


def _version() -> str:
    try:
        import qcompiler
    except ImportError:
        return "not installed"
    return qcompiler.__version__


def engine(context: Context, workers: int, cluster: str | None) -> Engine:
    """The engine of the options. Raises ExplorationError for a cluster that does not answer."""
    if cluster is not None:
        return Cluster(context, cluster)
    return Pool(context, workers) if workers > 1 else Engine(context)
