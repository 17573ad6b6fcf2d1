"""Make the next items of an iterator in a thread while the last one is in use."""

from collections.abc import Iterator
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any, TypeVar

from scmedley.errors import ScmedleyError

T = TypeVar("T")
AHEAD = 2  # items that are ready or being made
SECONDS = 0.2  # between looks at whether the other thread is still there


def read_ahead(items: Iterator[T], what: str) -> Iterator[T]:
    """Yield ``items``, which a thread makes; the thread ends with this generator.

    Raises
    ------
    ScmedleyError
        The thread failed or died; ``what`` it made is in the message.
    """
    queue: Queue[tuple[T | None, BaseException | None]] = Queue(AHEAD - 1)
    stop = Event()
    thread = Thread(target=_work, args=(items, queue, stop), name=f"scmedley: {what}", daemon=True)
    thread.start()
    try:
        while True:
            item, error = _next(queue, thread, what)
            if isinstance(error, StopIteration):
                return
            if isinstance(error, ScmedleyError):
                raise error
            if error is not None:
                raise ScmedleyError(
                    f"{what}: the reading thread failed ({type(error).__name__}: {error}). Run the same command again; "
                    "it resumes from the checkpoint."
                ) from error
            yield item
            del item
    finally:
        stop.set()
        thread.join()


def _next(queue: "Queue[Any]", thread: Thread, what: str) -> Any:
    """Return the next message of the thread; raise if it died without one."""
    while True:
        alive = thread.is_alive()  # before the look: it may end with its last message in the queue
        try:
            return queue.get(timeout=SECONDS if alive else 0)
        except Empty:
            if not alive:
                raise ScmedleyError(
                    f"{what}: the reading thread was killed. Run the same command again; it resumes from the "
                    "checkpoint."
                ) from None


def _work(items: Iterator[Any], queue: "Queue[Any]", stop: Event) -> None:
    """Put the items, and at last why there are no more, into the queue."""
    try:
        for item in items:
            if not _put(queue, (item, None), stop):
                return
            del item
        last: BaseException = StopIteration()
    except BaseException as error:  # it is raised in the main thread
        last = error
    _put(queue, (None, last), stop)


def _put(queue: "Queue[Any]", message: Any, stop: Event) -> bool:
    """Wait for room in the queue; return whether the message is in it, and not the reader gone."""
    while not stop.is_set():
        try:
            queue.put(message, timeout=SECONDS)
        except Full:
            continue
        return True
    return False
