"""A bounded queue that serves users in turn, and each user's items first come, first served."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from typing import Generic, TypeVar

from trellis.errors import InputError

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Safe to use from several threads.

    One user with twenty items delays another by one item, not by twenty.

    Args:
        capacity: most items of all users together.
        per_user: most items of one user.
    """

    def __init__(self, capacity: int = 64, per_user: int = 16) -> None:
        self._capacity, self._per_user = capacity, per_user
        self._lines: OrderedDict[str, deque[T]] = OrderedDict()  # the first user is the next to be served
        self._changed = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        with self._changed:
            return sum(len(line) for line in self._lines.values())

    def put(self, user: str, item: T) -> None:
        """Append an item. Raises InputError if the queue, or the user's share of it, is full."""
        with self._changed:
            if self._closed:
                raise InputError("The studio is closing; no further jobs are taken.")
            waiting = sum(len(line) for line in self._lines.values())
            if waiting >= self._capacity:
                raise InputError(f"{waiting} jobs are waiting already; please try again later.")
            line = self._lines.setdefault(user, deque())
            if len(line) >= self._per_user:
                raise InputError(f"{len(line)} of your jobs are waiting already; let some of them finish first.")
            line.append(item)
            self._changed.notify()

    def get(self, timeout: float | None = None) -> T | None:
        """The next item, waiting for one; None after `timeout` seconds without, or when the queue has been closed."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._lines or self._closed, timeout) or not self._lines:
                return None
            user, line = self._lines.popitem(last=False)
            item = line.popleft()
            if line:
                self._lines[user] = line  # to the end
            return item

    def remove(self, item: T) -> bool:
        """Take an item out, wherever it is; False if it is not there."""
        with self._changed:
            for user, line in self._lines.items():
                if item in line:
                    line.remove(item)
                    if not line:
                        del self._lines[user]
                    return True
            return False

    def ahead(self, item: T) -> int | None:
        """How many others will be served before an item; None if it is not there."""
        with self._changed:
            lines = [list(line) for line in self._lines.values()]
        for position in range(max(map(len, lines), default=0)):  # as turns go round
            for index, line in enumerate(lines):
                if position < len(line) and line[position] is item:
                    full_rounds = sum(min(len(other), position) for other in lines)
                    return full_rounds + sum(len(other) > position for other in lines[:index])
        return None

    def close(self) -> list[T]:
        """Take nothing more and wake who waits; returns the items that were still there."""
        with self._changed:
            self._closed = True
            left = [item for line in self._lines.values() for item in line]
            self._lines.clear()
            self._changed.notify_all()
            return left
