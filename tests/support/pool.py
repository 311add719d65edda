"""Processes without the wait for their imports: a server that has imported everything forks them.

A test runs `forked(ranks, [script, argument, ...])` where a user would start `deepspeed` or `torchrun`: as many
processes, with the same environment, that meet in a real process group; only launcher, imports and the interpreter's
own end are left out. Tests about launchers, signals and trees of processes start the real ones.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from adatad_ds.system.collection import collection_paused

REPOSITORY = Path(__file__).resolve().parents[2]
CLIENT = Path(__file__).with_name("pool_client.py")
OTHERS_SEC = 5  # for which the other ranks go on when one has failed
PR_SET_PDEATHSIG = 1
IMPORTS = (
    "adatad_ds.inference.evaluation",
    "adatad_ds.inference.prediction",
    "adatad_ds.models.backbones.adapted_image",
    "adatad_ds.training.session",
    "matplotlib.figure",
    "torch.utils.tensorboard",
)


def forked(ranks: int, command: list[str]) -> list[str]:
    """The command line that runs `[script, ...]` or `["-m", module, ...]` in so many processes of the server."""
    return [sys.executable, "-I", "-S", str(CLIENT), server(), str(ranks), *command]


@functools.cache
def server() -> str:
    """The socket of this process' server, which starts at the first call and ends with this process."""
    path = str(Path(tempfile.mkdtemp(prefix="adatad_pool_")) / "socket")
    ready, told = os.pipe()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.Popen(
        [sys.executable, "-m", "tests.support.pool", path, str(told)],
        cwd=REPOSITORY,
        env=environment,
        stdin=subprocess.PIPE,  # closed when this process ends, in whatever way
        pass_fds=[told],
        start_new_session=True,
    )
    os.close(told)
    started = os.read(ready, 1)
    os.close(ready)
    assert started, "the pool of test processes did not start; see its error above"
    return path


def main() -> None:
    """Serve until the process that started this one is gone."""
    path, ready = sys.argv[1], int(sys.argv[2])
    with collection_paused():  # what is imported stays shared between the forks
        for module in IMPORTS:
            importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # those who wait for ranks are waited for by nobody
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        os.write(ready, b"!")
        os.close(ready)
        request = serve(listener)
    if request is not None:
        run(request)
    else:
        os.unlink(path)
        os.rmdir(os.path.dirname(path))


def serve(listener: socket.socket) -> dict[str, Any] | None:
    """Take requests; returns in each rank, with what it is to run, and at the end with None."""
    while True:
        readable, _, _ = select.select([sys.stdin, listener], [], [])
        if sys.stdin in readable:
            return None
        client, _ = listener.accept()
        if os.fork() == 0:
            die_with_parent()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return start_ranks(client)
        client.close()


def start_ranks(client: socket.socket) -> dict[str, Any]:
    """Fork the ranks that a client asks for, wait for them and tell their exit code; returns in the ranks alone."""
    message, descriptors, _, _ = socket.recv_fds(client, 1 << 20, 3)
    request = json.loads(message)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    running = set()
    for rank in range(request["ranks"]):
        if (process := os.fork()) == 0:
            die_with_parent()
            client.close()
            for number, descriptor in enumerate(descriptors):
                os.dup2(descriptor, number)
                os.close(descriptor)
            if request["ranks"] > 1:
                place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": request["ranks"]}
                request["environment"] |= {name: str(value) for name, value in place.items()}
                request["environment"] |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            return request
        running.add(process)
    code, deadline = 0, float("inf")
    while running:
        if select.select([client], [], [], 0.02)[0] or time.monotonic() > deadline:  # nobody waits any more
            for process in running:
                os.kill(process, signal.SIGKILL)
        for process in list(running):
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                running.remove(process)
                if status and not code:
                    code, deadline = os.waitstatus_to_exitcode(status), time.monotonic() + OTHERS_SEC
    with suppress(OSError):  # nobody waits any more
        client.sendall(str(code).encode())
    os._exit(0)


def run(request: dict[str, Any]) -> NoReturn:
    """Be the process that was asked for, to its end."""
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    command = request["command"]
    code: object = None
    try:
        if command[0] == "-m":
            sys.argv, sys.path[0] = command[1:], request["folder"]
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[0] = command, str(Path(command[0]).resolve().parent)
            runpy.run_path(command[0], run_name="__main__")
    except SystemExit as ended:
        code = ended.code
    leave(code)


def leave(code: object) -> NoReturn:
    """End as `sys.exit(code)` does, but leave the server's imports be: taking them apart costs each rank 0.4 CPU s."""
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
