"""The thread pool of this process: one for all native modules that are loaded in it.

It is made when the first session asks, starts its threads at the first parallel run, grows to the largest
request, and lives as long as the process. A forked child keeps the pool's memory and starts threads of its
own (the native code compares process ids).
"""

from __future__ import annotations

import ctypes
import functools
import threading

from fusile.errors import FusileError
from fusile.runtime.cache import Cache
from fusile.runtime.image import Image, load_image
from fusile.runtime.native_support import support_image
from fusile.target import host


class SharedPool:
    """The pool; `address` is what `fusile_create` takes. Contexts raise the number of threads by themselves
    when they are made.
    """

    def __init__(self, image: Image) -> None:
        self._image = image
        make = image.function("fusile_pool_create", ctypes.c_void_p, ctypes.c_int32)
        self._request = image.function("fusile_pool_request", None, ctypes.c_void_p, ctypes.c_int32)
        address = make(1)
        if not address:
            raise FusileError("There is no memory for the thread pool")
        self.address: int = address

    def request(self, threads: int) -> None:
        """Lets loops use up to `threads` threads, the caller's among them."""
        self._request(self.address, threads)

    @property
    def threads(self) -> int:
        """How many threads loops may use."""
        return ctypes.c_int32.from_address(self.address + 16).value

    @property
    def started(self) -> int:
        """How many workers have been started in this process or, in a fresh fork, its parent."""
        return ctypes.c_int32.from_address(self.address + 12).value


def shared_pool(cache: Cache) -> SharedPool:
    """This process's pool, made at the first call; its code is compiled once per machine and comes from the
    cache after that.
    """
    holder = _holder()
    with holder.lock:
        if holder.pool is None:
            target = host()
            holder.pool = SharedPool(load_image(support_image(target, cache), verify=False))
    return holder.pool


class _Holder:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.pool: SharedPool | None = None


@functools.cache
def _holder() -> _Holder:
    return _Holder()
