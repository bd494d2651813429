"""Child processes that start in milliseconds: forked from one that has loaded torch, transformers and peft already.

A fresh interpreter spends four CPU seconds on those imports before it does anything. Tests whose point is what a child
process does, and not how it starts, run it warm: inside ``warm()`` every ``subprocess.Popen`` of this interpreter (``-c``,
``-m`` or a file) is a fork of a small server that has made the imports. Pipes, descriptors, environment, folder, signals and
exit codes are those of an ordinary child; options of the interpreter, and other programs, start as usual.

The server forks twice and the middle process ends, so the child is adopted by the process that asked for it
(``PR_SET_CHILD_SUBREAPER``) and can be waited for and killed like any of its own. A warm child that starts children of its
own forks them itself. Linux only: elsewhere ``warm()`` changes nothing.
"""

import array
import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

LOADED = (
    *("accelerate.commands.launch", "datasets", "qwen_vl_utils", "tensorboardX", "torch._dynamo", "torch.distributed.nn"),
    *("torch.distributed.run", "torch.utils.flop_counter", "budgetft.cli.train", "budgetft.cli.data", "budgetft.train.run"),
    *("budgetft.meter.live", "budgetft.predict.trace", "budgetft.measure.job"),
)
"""Imported by the server before the first fork; what transformers loads as it is asked for comes with ``_warm_up``."""
READ_AT_IMPORT = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ATEN_CPU_CAPABILITY", "HF_HUB_OFFLINE", "PYTORCH_ALLOC_CONF")
"""Variables that a library reads once: a child with another value of one of them is started afresh."""
PR_SET_CHILD_SUBREAPER = 36
Cold = subprocess.Popen


class _Server:
    """The process that has made the imports, and the socket on which it takes orders."""

    def __init__(self) -> None:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket = here
        self._lock = threading.Lock()
        self.environment = dict(os.environ)
        source = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); import warm; warm.serve({there.fileno()})"
        self._process = Cold([sys.executable, "-c", source], pass_fds=(there.fileno(),), stdin=subprocess.DEVNULL)
        there.close()

    def fork(self, order: dict[str, Any], descriptors: Sequence[int]) -> int:
        """The process id of a new child that does ``order`` with ``descriptors`` as its own."""
        with self._lock:
            body = json.dumps(order).encode()
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
            self._socket.sendmsg([struct.pack("!I", len(body))], ancillary)
            self._socket.sendall(body)
            answer = self._socket.recv(4, socket.MSG_WAITALL)
        if len(answer) < 4:
            raise OSError("the warm server has ended")
        return struct.unpack("!i", answer)[0]

    def close(self) -> None:
        self._socket.close()
        self._process.wait()


_server: _Server | None = None
_inside = False
"""Whether children are warm now."""
_forks_itself = False
"""Whether this process is warm itself: it then forks its children without a server."""


def close() -> None:
    """End the server, if there is one."""
    global _server
    if _server is not None:
        _server.close()
        _server = None


def _command(args: Any, executable: Any, environment: Mapping[str, str]) -> list[str] | None:
    """The arguments after the interpreter, when ``args`` can run warm: this interpreter, ``-c``, ``-m`` or a file."""
    words = [os.fsdecode(word) for word in args] if isinstance(args, list | tuple) else []
    if executable is not None or len(words) < 2 or words[0] != sys.executable:
        return None
    words = words[1:]
    if words[0] == "-u":  # as torch's launcher starts its workers
        words = words[1:]
    if not words or (words[0].startswith("-") and words[0] not in ("-c", "-m")):
        return None
    known = _server.environment if _server is not None else os.environ
    same = all(environment.get(name) == known.get(name) for name in READ_AT_IMPORT)
    return words if same else None


class WarmPopen(subprocess.Popen):
    """``subprocess.Popen`` whose Python children are forked with their imports made."""

    def _execute_child(  # type: ignore[override]
        self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell, *rest
    ) -> None:
        (p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, _signals, _gid, _gids, _uid, _umask, session, group) = rest
        environment = dict(os.environ) if env is None else {os.fsdecode(k): os.fsdecode(v) for k, v in env.items()}
        fresh = not (_inside or _forks_itself) or shell or preexec_fn
        words = None if fresh else _command(args, executable, environment)
        if words is None or group not in (None, -1):
            given = (args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell)
            super()._execute_child(*given, *rest)  # type: ignore[misc]
            return
        ends = [p2cread if p2cread != -1 else 0, c2pwrite if c2pwrite != -1 else 1, errwrite if errwrite != -1 else 2]
        order = {
            "words": words,
            "environment": environment,
            "folder": os.fspath(cwd) if cwd is not None else os.getcwd(),
            "session": bool(session),
            "numbers": [0, 1, 2, *pass_fds],
        }
        given = [*ends, *pass_fds]
        if _forks_itself:
            self.pid = os.fork()
            if self.pid == 0:
                _become(order, given)
        else:
            global _server
            if _server is None:
                _server = _Server()
            self.pid = _server.fork(order, given)
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]


@contextlib.contextmanager
def warm() -> Iterator[None]:
    """Python children that are started inside are warm. Nothing changes where there is no ``PR_SET_CHILD_SUBREAPER``."""
    if sys.platform != "linux":
        yield
        return
    global _inside
    before, _inside = (subprocess.Popen, _inside), True
    subprocess.Popen = WarmPopen  # type: ignore[misc]
    try:
        yield
    finally:
        subprocess.Popen, _inside = before  # type: ignore[misc]


def serve(number: int) -> None:
    """The server's life: take an order, fork, answer with the child's process id; until the socket closes."""
    subprocess.Popen = WarmPopen  # type: ignore[misc]  # for modules that take it by name
    for name in LOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    with contextlib.suppress(ImportError):
        _warm_up()
    gc.collect()
    gc.freeze()  # the children's collections leave these pages shared
    orders = socket.socket(fileno=number)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests; they close the socket
    while True:
        head, descriptors = _receive(orders)
        if len(head) < 4:
            return
        order = json.loads(orders.recv(struct.unpack("!I", head)[0], socket.MSG_WAITALL))
        read_end, write_end = os.pipe()
        middle = os.fork()
        if middle == 0:
            child = os.fork()
            if child == 0:
                os.close(read_end)
                os.close(write_end)
                orders.close()
                _become(order, descriptors)
            os.write(write_end, struct.pack("!i", child))
            os._exit(0)
        os.close(write_end)
        for descriptor in descriptors:
            os.close(descriptor)
        answer = os.read(read_end, 4)
        os.close(read_end)
        os.waitpid(middle, 0)  # before the answer: the child must have its new parent by then
        orders.sendall(answer)


def _warm_up() -> None:
    """Make what every child would make first: the tokenizer, the processors and, without weights, the models."""
    import functools

    import torch

    from budgetft.contract import Contract
    from budgetft.data import processor
    from budgetft.errors import BudgetftError
    from budgetft.model import load_model
    from budgetft.step.build import build_model

    processor.load_tokenizer = functools.cache(processor.load_tokenizer)
    for name in ("tiny-qwen2.5-vl", "tiny-qwen2-vl", "tiny-qwen3-vl"):
        model = load_model(name)
        build_model(model, Contract(), base_precision="fp32", device=torch.device("meta"))
        with contextlib.suppress(BudgetftError):  # the vocabulary is not installed
            processor.load_processor(model)


def _receive(orders: socket.socket) -> tuple[bytes, list[int]]:
    head, ancillary, _, _ = orders.recvmsg(4, socket.CMSG_SPACE(64 * array.array("i").itemsize))
    numbers = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
    return head, list(numbers)


def _become(order: dict[str, Any], descriptors: Sequence[int]) -> None:
    """Be the child of ``order`` until its end; never returns."""
    code = 1
    try:
        if order["session"]:
            os.setsid()
        high = [os.dup2(number, 200 + place) for place, number in enumerate(descriptors)]
        for number in range(3):
            os.dup2(high[number], number)
        for number, wanted in list(zip(high, order["numbers"], strict=True))[3:]:
            os.dup2(number, wanted)
        os.closerange(3, 200) if len(descriptors) == 3 else _close_others(set(order["numbers"]))
        os.closerange(200, 1024)
        os.environ.clear()
        os.environ.update(order["environment"])
        os.chdir(order["folder"])
        code = _run(order["words"])
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
        with contextlib.suppress(BaseException):
            sys.stderr.flush()
        os._exit(code)


def _close_others(kept: set[int]) -> None:
    for number in range(3, 200):
        if number not in kept:
            with contextlib.suppress(OSError):
                os.close(number)


def _run(words: list[str]) -> int:
    """Run as the interpreter would, to its exit code."""
    global _server, _forks_itself
    _server, _forks_itself = None, True
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    _path_of(words)
    try:
        if words[0] == "-m":
            sys.argv = ["-m", *words[2:]]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        elif words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            module = ModuleType("__main__")
            module.__dict__["__builtins__"] = __builtins__
            sys.modules["__main__"] = module
            exec(compile(words[1], "<string>", "exec"), module.__dict__)
        else:
            sys.argv = list(words)
            runpy.run_path(words[0], run_name="__main__")
        return _shut_down(0)
    except SystemExit as error:
        if error.code is not None and not isinstance(error.code, int):
            print(error.code, file=sys.stderr)
        return _shut_down(error.code if isinstance(error.code, int) else 0 if error.code is None else 1)
    except KeyboardInterrupt:
        traceback.print_exc()
        _shut_down(0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        return _shut_down(1)
    return 1


def _path_of(words: list[str]) -> None:
    """``sys.path`` as a fresh interpreter would have it: its own first entry, and PYTHONPATH."""
    first = os.getcwd() if words[0] in ("-m", "-c") else os.path.dirname(os.path.abspath(words[0]))
    given = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    sys.path[:] = [first, *given, *(part for part in sys.path if part not in (os.path.dirname(__file__), "", first, *given))]


def _shut_down(code: int) -> int:
    import atexit

    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    return code
