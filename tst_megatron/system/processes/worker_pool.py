"""Work on items in several processes, and return the results in order, with progress."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from tst_megatron.system.processes.signals import die_with_parent

_SECONDS_BETWEEN_LOOKS = 0.2
_THREADS_OF_TOKENIZERS = "TOKENIZERS_PARALLELISM"


def in_order[Item, Result](
    work: Callable[[Item, Callable[[int], None]], Result],
    items: Iterable[Item],
    *,
    workers: int,
    advance: Callable[[int], None],
) -> Generator[tuple[Item, Result | Exception]]:
    """Do some work on every item, and yield the results in the order of the items.

    An error of an item is yielded in place of its result, so that the caller decides about the
    others. When the generator is closed, items that have not begun are dropped, and those that run
    are waited for.

    Args:
        work: takes an item, and a function to call with the bytes done since its last call. It can
            be sent to another process.
        items: in their order.
        workers: processes; 1 stays in this one.
        advance: called in this process with the bytes done since its last call.

    Raises:
        RuntimeError: a worker was killed.
    """
    if workers == 1:
        for item in items:
            try:
                with _one_thread():
                    result = work(item, advance)
            except (ValueError, OSError) as error:
                yield item, error
            else:
                yield item, result
        return
    # Not forked: the caller may have threads (torch, rich), and a fork would copy their locks.
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    pool = ProcessPoolExecutor(
        workers, context, initializer=_start_worker, initargs=(work, counter)
    )
    try:
        pending = [(item, pool.submit(_work, item)) for item in items]
        # Futures are dropped as they are done with: a result may be large.
        pending.reverse()
        while pending:
            item, future = pending.pop()
            _wait(future, counter, advance)
            yield item, _result(future)
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep a worker in this process to one thread: `tokenizers` would take all cores."""
    before = os.environ.get(_THREADS_OF_TOKENIZERS)
    os.environ[_THREADS_OF_TOKENIZERS] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_THREADS_OF_TOKENIZERS]
        else:
            os.environ[_THREADS_OF_TOKENIZERS] = before


def _wait(future: Future[Any], counter: Any, advance: Callable[[int], None]) -> None:
    """Wait for a future, and report meanwhile what all workers have done."""
    while True:
        done, _ = wait([future], timeout=_SECONDS_BETWEEN_LOOKS)
        with counter.get_lock():
            num_bytes, counter.value = counter.value, 0
        if num_bytes:
            advance(num_bytes)
        if done:
            return


def _result(future: Future[Any]) -> Any:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker process was killed, by a person or for want of memory. What is done is kept: "
            "the same command goes on. Give fewer workers if it was the memory."
        ) from error
    except (ValueError, OSError) as error:
        return error


_work_of_this_process: tuple[Callable[[Any, Callable[[int], None]], Any], Any] | None = None


def _start_worker(work: Callable[[Any, Callable[[int], None]], Any], counter: Any) -> None:
    global _work_of_this_process
    os.environ[_THREADS_OF_TOKENIZERS] = "false"
    # Workers of a killed parent would wait for work for ever.
    die_with_parent()
    _work_of_this_process = work, counter


def _work(item: Any) -> Any:
    assert _work_of_this_process is not None
    work, counter = _work_of_this_process

    def advance(num_bytes: int) -> None:
        with counter.get_lock():
            counter.value += num_bytes

    return work(item, advance)
