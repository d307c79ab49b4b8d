"""Work made ahead by a thread, so that the loop never waits for data."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from threading import Condition, Thread
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")


class Prefetched(Generic[Item]):
    """Items `make(start)`, `make(start + 1)`, ... made ahead by a thread.

    An error of the thread is raised at the item it belongs to. `close()` ends the thread; so does dropping the
    last reference. With depth 0 there is no thread.
    """

    def __init__(self, make: Callable[[int], Item], *, start: int, depth: int) -> None:
        self._make = make
        self._next = start
        self._shared = _Shared(depth)
        self._thread: Thread | None = None
        if depth:
            # The thread knows the shared part only, so that an abandoned iterator can be collected and ends it.
            self._thread = Thread(target=_produce, args=(make, start, self._shared), name="prefetch", daemon=True)
            self._thread.start()
            weakref.finalize(self, self._shared.close)

    def __iter__(self) -> Prefetched[Item]:
        return self

    def __next__(self) -> Item:
        if self._shared.closed:
            raise StopIteration
        self._next += 1
        return self._make(self._next - 1) if self._thread is None else self._shared.take()

    def close(self) -> None:
        """End the thread and forget what it prepared."""
        self._shared.close()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> Prefetched[Item]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Shared:
    """A bounded queue with an end that both sides see at once."""

    def __init__(self, depth: int) -> None:
        self.closed = False
        self._depth = depth
        self._ready: deque[Any] = deque()
        self._error: BaseException | None = None
        self._changed = Condition()

    def put(self, item: Any) -> bool:
        """Wait for room and add an item; False: closed."""
        with self._changed:
            self._changed.wait_for(lambda: self.closed or len(self._ready) < self._depth)
            if not self.closed:
                self._ready.append(item)
                self._changed.notify_all()
            return not self.closed

    def fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def take(self) -> Any:
        with self._changed:
            self._changed.wait_for(lambda: self.closed or self._ready or self._error is not None)
            if self.closed:
                raise StopIteration
            if not self._ready and self._error is not None:
                raise self._error
            item = self._ready.popleft()
            self._changed.notify_all()
            return item

    def close(self) -> None:
        with self._changed:
            self.closed = True
            self._ready.clear()
            self._changed.notify_all()


def _produce(make: Callable[[int], Any], start: int, shared: _Shared) -> None:
    number = start
    try:
        while shared.put(make(number)):
            number += 1
    except BaseException as error:  # handed to the consumer, whatever it is
        shared.fail(error)
