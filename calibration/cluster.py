"""A map over shards on the processes of a Ray cluster, in order, whatever becomes of single processes.

::

    shards --a bounded number under way--> workers --answers, in the order of the shards--> caller

A worker that dies takes its shard with it, and Ray gives the shard to another one: a shard depends on nothing but
itself, so the answers are the same. What no other worker would do better (wrong versions, an unusable image) ends the
map with one line.
"""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from calibration.cluster_worker import Answer, Job, processor, versions
from calibration.shards import Shard
from runtimes.errors import InputError, UnavailableError, first_line, missing_package

#: The address that means: processes of this machine, for this run alone.
LOCAL: Final = "local"
# A shard whose worker dies so often is what kills it.
_TRIES: Final = 4
# Ray itself tries for two minutes to reach a cluster that is not there.
_REACH_SECONDS: Final = 20.0
# A free worker may have to wait so long for its next shard where an earlier one is not done.
_TICK_SECONDS: Final = 0.1
# Shards for each worker that may be done before an earlier one is: their answers lie in memory.
_AHEAD: Final = 4
# The sockets of Ray lie in its folder, and the path of a socket has at most 107 bytes.
_LONGEST_FOLDER: Final = 30


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster that this process is connected to; from :func:`connected`.

    Attributes:
        workers: Shards that are worked on at a time.
        threads: Processors that each takes.
        local: Whether it is of this machine and this run alone.
    """

    workers: int
    threads: int
    local: bool


@contextmanager
def connected(address: str, workers: int | None = None, threads: int = 1) -> Iterator[Cluster]:
    """Connect to a cluster, or start one on this machine; afterwards nothing of it is left.

    Args:
        address: ``local``, ``auto`` for the cluster that this machine is a part of, or the ``HOST:PORT`` of its head.
        workers: Shards to be worked on at a time; ``None``: as many as there are processors for.
        threads: Processors for each.

    Raises:
        UnavailableError: Ray is missing, nothing answers at the address, or its Ray or Python is another version.
        InputError: A number is out of range, or the address is of Ray's client protocol.
    """
    if threads < 1 or (workers is not None and workers < 1):
        raise InputError(f"received {workers} workers of {threads} threads, expected at least 1 of each")
    if "://" in address:
        raise InputError(f"{address} is Ray's client protocol: start this on a machine of the cluster, with --ray auto")
    # Both are read when Ray is imported.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its core writes on our stderr of all it recovers from
    ray = _ray()
    with ExitStack() as stack:
        if address == LOCAL:
            workers = workers or max(1, _processors() // threads)
            _start(ray, workers * threads, stack)
        else:
            _reach(address)
            _connect(ray, stack, address=address)
            present = int(ray.cluster_resources().get("CPU", 0)) // threads
            if not present:
                raise UnavailableError(f"the cluster at {address} has no {threads} processors on any machine: add one")
            workers = min(workers or present, present)
        yield Cluster(workers, threads, address == LOCAL)


def over_shards(cluster: Cluster, job: Job, pieces: Iterable[Shard]) -> Generator[tuple[Shard, Answer], None, None]:
    """What a job makes of each shard, in order; closing the generator calls off what is under way.

    Args:
        cluster: From :func:`connected`.
        job: Sent once; opened once in each process.
        pieces: Read as they are needed.

    Raises:
        UnavailableError: A worker has other versions than this process, or the workers of one shard died again and
            again.
        ResnetExportError: The job's own error at the first shard, in order, that has one.
    """
    ray = _ray()
    token, expected = uuid.uuid4().hex, versions(job.modules)
    # In a list, a reference goes as it is: each process fetches the job once, not with every shard.
    parcel = [ray.put(pickle.dumps(job))]
    task = ray.remote(num_cpus=cluster.threads, max_retries=_TRIES - 1, retry_exceptions=False)(_by_value())
    source = iter(pieces)
    # Of its own cluster Ray keeps the rest waiting, so that no worker idles between two shards.
    most = 2 * cluster.workers if cluster.local else cluster.workers
    waiting: dict[int, tuple[Shard, Any]] = {}
    following = given = 0
    try:
        while True:
            running = _running(ray, [each for _, each in waiting.values()])
            room = min(most - len(running), _AHEAD * most - len(waiting))
            for shard in islice(source, max(room, 0)):
                waiting[given] = (shard, task.remote(token, dict(expected), job.modules, parcel, pickle.dumps(shard)))
                given += 1
            if not waiting:
                return
            shard, reference = waiting[following]
            if not ray.wait([reference], timeout=_TICK_SECONDS)[0]:
                continue
            del waiting[following]
            following += 1
            yield shard, _answer(ray, reference, shard, expected)
    finally:
        for _, reference in waiting.values():
            with suppress(Exception):  # it may have ended, or the cluster be gone
                ray.cancel(reference, force=True)


def other_processors(hosts: dict[str, str]) -> str | None:
    """The line for machines whose kernels may round otherwise than this one's; ``None`` where there are none.

    Args:
        hosts: :attr:`Answer.processor` by host.
    """
    others = sorted(host for host, each in hosts.items() if each != processor())
    if not others:
        return None
    return (
        f"{', '.join(others)} {'has' if len(others) == 1 else 'have'} processors with other instruction sets than this "
        f"machine: the last bits depend on which machine did which images; use machines of one kind to repeat a run "
        f"byte for byte"
    )


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise missing_package("ray", "ray") from error
    return ray


def _running(ray: Any, references: list[Any]) -> list[Any]:
    if not references:
        return []
    running: list[Any] = ray.wait(references, num_returns=len(references), timeout=0)[1]
    return running


def _answer(ray: Any, reference: Any, shard: Shard, expected: dict[str, str]) -> Answer:
    try:
        host, found, packed = ray.get(reference)
    except ray.exceptions.RayTaskError:
        raise  # a fault of this program, with the worker's traceback
    except ray.exceptions.RayError as error:
        raise UnavailableError(
            f"the worker for {shard.files[0]} and the {len(shard.files) - 1} images after it died {_TRIES} times "
            f"({first_line(error)}): use fewer workers if memory is short, or find the image without --ray"
        ) from error
    if packed is None:
        told = ", ".join(f"{name} {found.get(name, 'missing')} and not {each}" for name, each in expected.items()
                         if found.get(name) != each)  # fmt: skip
        raise UnavailableError(f"{host} would compute with {told}: install the same on every machine")
    answer: Answer = pickle.loads(packed)  # noqa: S301  (of this run's own workers)
    if answer.error is not None:
        raise answer.error
    return answer


def _by_value() -> Callable[..., tuple[str, dict[str, str], bytes | None]]:
    """The task, as a function that cloudpickle sends whole: a machine without this project can then say so."""

    def shard_of_images(
        token: str, expected: dict[str, str], modules: tuple[str, ...], parcel: list[Any], shard: bytes
    ) -> tuple[str, dict[str, str], bytes | None]:
        import socket

        import ray

        try:
            from calibration.cluster_worker import versions, work
        except ImportError:  # missing, or of a release that had no clusters
            return socket.gethostname(), {}, None
        found = versions(modules)
        if found != expected:
            return socket.gethostname(), found, None
        return socket.gethostname(), found, work(token, lambda: ray.get(parcel[0]), shard)

    return shard_of_images


def _start(ray: Any, processors: int, stack: ExitStack) -> None:
    parent = tempfile.gettempdir() if len(tempfile.gettempdir()) <= _LONGEST_FOLDER else "/tmp"
    folder = tempfile.mkdtemp(prefix="ray-", dir=parent)
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    # Otherwise a shard that is too large for the memory would be tried for ever.
    os.environ.setdefault("RAY_task_oom_retries", str(_TRIES - 1))
    # Ray puts its workers behind everything else on the machine; here they are what the user is waiting for.
    os.environ.setdefault("RAY_worker_niceness", "0")
    _connect(ray, stack, address=LOCAL, num_cpus=processors, num_gpus=0, include_dashboard=False, _temp_dir=folder)


def _connect(ray: Any, stack: ExitStack, **how: Any) -> None:
    if ray.is_initialized():
        raise InputError("this process is connected to a Ray cluster already: shut that down first")
    stack.callback(ray.shutdown)
    with _own_handlers(), _silent():
        try:
            ray.init(log_to_driver=False, logging_level="ERROR", **how)
        # Ray ends the process where a cluster goes away under its hands.
        except (Exception, SystemExit) as error:
            where = "on this machine" if how["address"] == LOCAL else f"at {how['address']}"
            raise UnavailableError(f"Ray cannot be used {where}: {' '.join(str(error).split())[:300]}") from error


def _reach(address: str) -> None:
    """Refuse an address where no cluster answers, in bounded time."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=_REACH_SECONDS, check=False)
        reason = found.stderr.strip().splitlines()[-1:] if found.returncode else None
    except subprocess.TimeoutExpired:
        reason = [f"no answer within {_REACH_SECONDS:.0f} s"]
    if reason is not None:
        raise UnavailableError(
            f"no Ray cluster lets this process in at {address} ({' '.join(reason)[:150] or 'no reason given'}): "
            f"`ray status --address {address}` has to work here first; or use --ray local"
        )


@contextmanager
def _own_handlers() -> Iterator[None]:
    """Ray puts a handler of its own on SIGTERM, which would end this process without its cleaning up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _silent() -> Iterator[None]:
    """Nothing on stderr, from Ray's core either, which announces there that it was told to be quiet."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _processors() -> int:
    """Processors that this process may use: a container may have two of a machine's hundred."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
