"""One worker: loads functions, runs orders, hands in results. Runs in a process that the zygote has forked."""

from __future__ import annotations

import atexit
import faulthandler
import mmap
import os
import signal
import socket
import sys
import threading
import time
from collections import OrderedDict
from typing import NoReturn

from fallow.wire.code import Loaded, load_function
from fallow.worker import nested, orders, state
from fallow.worker.block import Block
from fallow.worker.channel import Channel
from fallow.worker.failures import traceback_text
from fallow.worker.orders import IDLE, INDEX, LOADED_FUNCTIONS, LOADING, NOTICE, PHASE, RUNNING
from fallow.worker.outbox import FIRST_HAND_IN_S, FLOW_S, Outbox
from fallow.worker.output import Output
from fallow.worker.pages import PageWriter
from fallow.worker.runner import Runner

HELPER_TICK_S = 0.1
HELPER_REST_S = 0.2
HELPER_SHORT_REST_S = 0.4
"""While one longer task after the other runs: each look takes the interpreter from the task. Where the task is another
one than at the last look, the main thread itself sees soon enough what is to be seen."""
HELPER_IDLE_TICKS = 10


class Helper:
    """A thread that looks every 0.1 to 0.4 s, while the worker works, whether results wait for a long task to end.
    It sleeps for good while there is nothing to do: a worker at rest costs nothing."""

    def __init__(self, output: Output, words: memoryview, block: Block) -> None:
        self._output = output
        self._words = words
        self._block = block
        self._wake = threading.Event()
        self._parked = True
        self.outbox: Outbox | None = None

    def start(self) -> None:
        threading.Thread(target=self._loop, name="fallow-helper", daemon=True).start()

    def begin(self, outbox: Outbox) -> None:
        """An order begins."""
        self.outbox = outbox
        if self._parked:
            self._wake.set()

    def _loop(self) -> None:
        idle, seen = 0, -1
        tick_s = HELPER_TICK_S
        while True:
            if idle >= HELPER_IDLE_TICKS and self._output.idle():
                self._parked = True
                if self.outbox is None:  # else an order has begun just now, and saw no need to wake us
                    self._wake.wait()
                self._parked = False
                self._wake.clear()
                idle = 0
            time.sleep(tick_s)
            outbox = self.outbox
            if outbox is not None and self._words[NOTICE]:
                outbox.hand_in_now()
                state.notice()
            tick_s = HELPER_TICK_S
            if outbox is None:
                idle += 1
            else:
                idle = 0
                if not self._block.look():
                    index, seen = seen, self._words[INDEX]
                    tick_s = HELPER_REST_S if index == seen else HELPER_SHORT_REST_S
                outbox.help()


class Function:
    """A loaded function, and the chunk and the intervals of hand-ins that its last order ended with."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self.chunk = 1
        self.interval_s = FIRST_HAND_IN_S
        self.flow_s = FLOW_S


class Worker:
    def __init__(self, sock: socket.socket, words: memoryview, scratch: str, serial: int) -> None:
        self._words = words
        self._scratch = scratch
        self._channel = Channel(sock)
        self._writer = PageWriter(scratch, str(serial))
        self._functions: OrderedDict[str, Function] = OrderedDict()
        self._block = Block(words)
        self._output = Output(self._index)
        self._helper = Helper(self._output, words, self._block)

    def _index(self) -> int:
        words = self._words
        return self._block.in_progress() if words[PHASE] >= RUNNING else -1

    def serve(self) -> None:
        """Run orders until told to stop."""
        nested.install(self._channel)
        state.install(self._channel, self._words, self._scratch, self._block.in_progress)
        self._output.install()
        self._helper.start()
        while isinstance(order := self._channel.next_order(), orders.Run):
            self._run(order)
        self._words[PHASE] = IDLE
        for function in self._functions.values():
            self._close(function)
        self._output.close()

    def _run(self, order: orders.Run) -> None:
        words = self._words
        function = self._function(order)
        self._writer.plain = order.plain
        self._writer.files_from = order.files_from
        outbox = Outbox(
            order,
            self._channel.send,
            self._writer,
            early=not order.reduce,
            interval_s=function.interval_s,
            flow_s=function.flow_s,
        )
        words[PHASE] = RUNNING
        state.begin(order)
        self._helper.begin(outbox)
        runner = Runner(order, function.loaded, words, outbox, self._block, function.chunk)
        runner.run()
        later = runner.retry()
        state.end()
        self._helper.outbox = None
        self._output.finish()
        runner.end(later)
        function.chunk = max(1, runner.chunk)
        function.interval_s, function.flow_s = outbox.interval_s, outbox.flow_s
        words[PHASE] = IDLE

    def _function(self, order: orders.Run) -> Function:
        function = self._functions.get(order.job_id)
        if function is not None:
            if next(reversed(self._functions)) != order.job_id:
                self._functions.move_to_end(order.job_id)
                function.loaded.show_sources()
            return function
        self._words[PHASE] = LOADING
        if len(self._functions) >= LOADED_FUNCTIONS:
            self._close(self._functions.popitem(last=False)[1])
        try:
            if order.function is None:
                raise RuntimeError(f"the function of job {order.job_id} did not come with the order")
            function = Function(load_function(order.function))
        except BaseException as error:
            self._fail_setup(error)
        self._functions[order.job_id] = function
        return function

    def _close(self, function: Function) -> None:
        try:
            function.loaded.close()
        except BaseException as error:
            print(f"The exit method of {function.loaded.name!r} failed:\n{traceback_text(error)}", file=sys.stderr)

    def _fail_setup(self, error: BaseException) -> NoReturn:
        self._output.close()
        words = f"the function could not be loaded: {type(error).__name__}: {error}"
        self._channel.send(orders.SetupFailed(words, traceback_text(error)))
        os._exit(1)


def _print_by_line() -> None:
    """Have C's stdout written line by line, though it is a pipe."""
    try:
        import ctypes

        libc = ctypes.CDLL(None)
        libc.setvbuf(ctypes.c_void_p.in_dll(libc, "stdout"), None, 1, 0)  # _IOLBF
    except (ImportError, OSError, ValueError, AttributeError):
        pass


def run_worker(socket_fd: int, map_fd: int, scratch: str, serial: int) -> None:
    """Be a worker until told to stop; never returns. Descriptors 0, 1 and 2 are set already."""
    faulthandler.enable(2)  # the last words of a crash go to the agent
    faulthandler.register(getattr(signal, orders.SHOW_SIGNAL), 2, all_threads=False)
    _print_by_line()
    shared = mmap.mmap(map_fd, orders.MAP_BYTES)
    os.close(map_fd)
    sock = socket.socket(fileno=socket_fd)
    sock.setblocking(True)
    try:
        Worker(sock, memoryview(shared).cast("q"), scratch, serial).serve()
        atexit._run_exitfuncs()
    except BaseException as error:
        os.write(2, traceback_text(error).encode("utf-8", "replace"))
        os._exit(70)
    finally:
        sys.stdout.flush()
    os._exit(0)
