"""The thread pool: every iteration once, whoever calls, and silence when there is nothing to do."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fusile.runtime import abi
from fusile.runtime.cache import Cache
from fusile.runtime.image import Image, load_image
from fusile.runtime.link import link_image
from fusile.runtime.native_support import support_objects
from fusile.runtime.pool import SharedPool, shared_pool
from fusile.runtime.workers import compile_objects
from fusile.target import host

# Kernels whose frames are { error, pointers ... }.
KERNELS = (
    abi.DECLARATIONS
    + """
declare hidden i64 @fusile_fp_get()
declare i32 @usleep(i32)

; frame: error, counts: one i32 per iteration, begins: i64 of the chunk that an iteration was in
define hidden void @count(ptr %frame, i64 %begin, i64 %end, ptr %scratch) {
entry:
  %counts.place = getelementptr ptr, ptr %frame, i64 1
  %counts = load ptr, ptr %counts.place
  %begins.place = getelementptr ptr, ptr %frame, i64 2
  %begins = load ptr, ptr %begins.place
  br label %each

each:
  %i = phi i64 [ %begin, %entry ], [ %next, %each ]
  %place = getelementptr i32, ptr %counts, i64 %i
  %old = atomicrmw add ptr %place, i32 1 monotonic
  %where = getelementptr i64, ptr %begins, i64 %i
  store i64 %begin, ptr %where
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %end
  br i1 %more, label %each, label %done

done:
  ret void
}

; frame: error, used: i32 per participant, base of scratch, stride, floating point states: i64 per participant
define hidden void @who(ptr %frame, i64 %begin, i64 %end, ptr %scratch) {
  %used.place = getelementptr ptr, ptr %frame, i64 1
  %used = load ptr, ptr %used.place
  %base.place = getelementptr i64, ptr %frame, i64 2
  %base = load i64, ptr %base.place
  %stride.place = getelementptr i64, ptr %frame, i64 3
  %stride = load i64, ptr %stride.place
  %states.place = getelementptr ptr, ptr %frame, i64 4
  %states = load ptr, ptr %states.place
  %address = ptrtoint ptr %scratch to i64
  %offset = sub i64 %address, %base
  %number = sdiv i64 %offset, %stride
  %place = getelementptr i32, ptr %used, i64 %number
  %inside = atomicrmw add ptr %place, i32 1 seq_cst
  %state = call i64 @fusile_fp_get()
  %state.place = getelementptr i64, ptr %states, i64 %number
  store i64 %state, ptr %state.place
  %slept = call i32 @usleep(i32 2000)
  %clash = icmp ne i32 %inside, 0
  br i1 %clash, label %fail, label %leave

fail: ; two threads with one scratch
  %error = load ptr, ptr %frame
  call void @fusile_error(ptr %error, i32 7, i32 0, i64 %number, i64 0)
  br label %leave

leave:
  %back = atomicrmw sub ptr %place, i32 1 seq_cst
  ret void
}

; frame: error, context, counts, begins: each iteration runs a loop of 100 of its own over its part of counts
define hidden void @nest(ptr %frame, i64 %begin, i64 %end, ptr %scratch) {
entry:
  %inner = alloca [3 x ptr]
  %ctx.place = getelementptr ptr, ptr %frame, i64 1
  %ctx = load ptr, ptr %ctx.place
  %counts.place = getelementptr ptr, ptr %frame, i64 2
  %counts = load ptr, ptr %counts.place
  %begins.place = getelementptr ptr, ptr %frame, i64 3
  %begins = load ptr, ptr %begins.place
  br label %each

each:
  %i = phi i64 [ %begin, %entry ], [ %next, %each ]
  %first = mul i64 %i, 100
  %my.counts = getelementptr i32, ptr %counts, i64 %first
  %inner.counts = getelementptr ptr, ptr %inner, i64 1
  store ptr %my.counts, ptr %inner.counts
  %my.begins = getelementptr i64, ptr %begins, i64 %first
  %inner.begins = getelementptr ptr, ptr %inner, i64 2
  store ptr %my.begins, ptr %inner.begins
  call void @fusile_parallel(ptr %ctx, ptr @count, ptr %inner, i64 100, i64 10, ptr null, i64 0)
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %end
  br i1 %more, label %each, label %done

done:
  ret void
}
"""
)


class Context(ctypes.Structure):
    """The head of %context: what fusile_parallel reads."""

    _fields_ = (
        ("threads", ctypes.c_int32),
        ("unused", ctypes.c_int32),
        ("pool", ctypes.c_void_p),
        ("parallel_for", ctypes.c_void_p),
        ("user", ctypes.c_void_p),
    )


@dataclass
class Loops:
    """Runs kernels of the test image on a pool."""

    image: Image
    pool: int

    def __post_init__(self) -> None:
        pointer, wide = ctypes.c_void_p, ctypes.c_int64
        self._parallel = self.image.function(
            "fusile_parallel", None, pointer, pointer, pointer, wide, wide, pointer, wide
        )
        self.enter = self.image.function("fusile_pool_enter", None, pointer)

    def run(
        self, kernel: str, frame: list[int], count: int, grain: int, threads: int,
        scratch: int = 0, stride: int = 0, parallel_for: int = 0, pool: int | None = None,
    ) -> None:  # fmt: skip
        context = Context(threads, 0, self.pool if pool is None else pool, parallel_for, 0)
        slots = (ctypes.c_int64 * len(frame))(
            *(ctypes.addressof(context) if word == -1 else word for word in frame)
        )
        self._parallel(
            ctypes.addressof(context),
            self.image.symbol(kernel),
            ctypes.addressof(slots),
            count,
            grain,
            scratch,
            stride,
        )

    def count(self, count: int, grain: int, threads: int, **more: int) -> tuple[list[int], list[int]]:
        """How often each iteration ran, and where its chunk began."""
        counts, begins = (ctypes.c_int32 * max(count, 1))(), (ctypes.c_int64 * max(count, 1))()
        self.run(
            "count", [0, ctypes.addressof(counts), ctypes.addressof(begins)], count, grain, threads, **more
        )
        return list(counts)[:count], list(begins)[:count]


@pytest.fixture(scope="module")
def image(cache: Cache) -> Image:
    kernels = compile_objects([KERNELS], host())[0]
    support = [pair for pair in support_objects(host(), cache) if pair[0] == "support"]
    return load_image(link_image([*support, ("kernels", kernels)]))


@pytest.fixture
def loops(image: Image) -> Iterator[Loops]:
    pool = image.function("fusile_pool_create", ctypes.c_void_p, ctypes.c_int32)(4)
    yield Loops(image, pool)
    image.function("fusile_pool_destroy", None, ctypes.c_void_p)(pool)


def os_threads() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
@pytest.mark.parametrize(("count", "grain"), [(1, 1), (5, 1), (1000, 7), (1000, 1000), (1000, 999), (64, 16)])
def test_every_iteration_runs_once(loops: Loops, count: int, grain: int, threads: int) -> None:
    for _ in range(20):
        counts, begins = loops.count(count, grain, threads)
        assert counts == [1] * count
        if threads > 1 and count > grain:
            assert begins == [i // grain * grain for i in range(count)]
        else:
            assert begins == [0] * count


@pytest.mark.parametrize("count", [0, -3])
def test_empty_loops_call_nothing(loops: Loops, count: int) -> None:
    loops.run("count", [0, 0, 0], count, 1, 4)


def test_a_grain_of_zero_counts_as_one(loops: Loops) -> None:
    assert loops.count(10, 0, 2) == ([1] * 10, list(range(10)))


def test_a_context_without_a_pool_runs_alone(loops: Loops) -> None:
    assert loops.count(100, 10, 4, pool=0) == ([1] * 100, [0] * 100)


def test_workers_start_at_the_first_parallel_loop_and_no_sooner(loops: Loops) -> None:
    before = os_threads()
    loops.count(100, 100, 4)
    loops.count(100, 10, 1)
    assert os_threads() == before
    loops.count(100, 10, 3)
    assert os_threads() == before + 2
    loops.count(2, 1, 4)  # two chunks need one helper, which is there
    assert os_threads() == before + 2


def test_destroying_ends_the_workers(image: Image) -> None:
    before = os_threads()
    pool = image.function("fusile_pool_create", ctypes.c_void_p, ctypes.c_int32)(4)
    Loops(image, pool).count(100, 1, 4)
    assert os_threads() == before + 3
    image.function("fusile_pool_destroy", None, ctypes.c_void_p)(pool)
    assert os_threads() == before


def participants(loops: Loops, threads: int, chunks: int = 12) -> tuple[int, set[int], int]:
    """How many scratches were used, their floating point states, and the error's code. On a busy machine a
    thread may come too late for a loop, so there are some.
    """
    for _ in range(20):
        answer = once(loops, threads, chunks)
        if answer[0] == threads:
            break
    return answer


def once(loops: Loops, threads: int, chunks: int) -> tuple[int, set[int], int]:
    """`participants` of one loop."""
    scratch = (ctypes.c_int8 * (64 * 8))()
    used, states = (ctypes.c_int32 * 8)(), (ctypes.c_int64 * 8)(*([-1] * 8))
    error = abi.ErrorRecord()
    base = ctypes.addressof(scratch)
    frame = [ctypes.addressof(error), ctypes.addressof(used), base, 64, ctypes.addressof(states)]
    loops.run("who", frame, chunks, 1, threads, base, 64)
    seen = [state for state in states if state != -1]
    return len(seen), set(seen), error.code


@pytest.mark.parametrize("threads", [2, 3, 4])
def test_threads_are_as_many_as_the_call_says_each_with_a_scratch_of_its_own(
    loops: Loops, threads: int
) -> None:
    loops.count(100, 1, 4)  # all workers are up
    number, _, code = participants(loops, threads)
    assert (number, code) == (threads, 0)


def test_helpers_take_the_callers_floating_point_state(loops: Loops, image: Image) -> None:
    enter = image.function("fusile_fp_enter", ctypes.c_int64, ctypes.c_bool)
    leave = image.function("fusile_fp_set", None, ctypes.c_int64)
    get = image.function("fusile_fp_get", ctypes.c_int64)
    states = []
    for flush in (True, False, True):
        before = enter(flush)
        expected = get()
        number, seen, _ = participants(loops, 3)
        leave(before)
        assert number == 3
        assert {state & ~0x3F for state in seen} == {expected & ~0x3F}  # apart from the flags that sums raise
        states.append(expected & ~0x3F)
    assert states[0] == states[2] != states[1]


def test_nested_loops(loops: Loops) -> None:
    for _ in range(20):
        counts, begins = (ctypes.c_int32 * 2000)(), (ctypes.c_int64 * 2000)()
        loops.run("nest", [0, -1, ctypes.addressof(counts), ctypes.addressof(begins)], 20, 1, 4)
        assert list(counts) == [1] * 2000
        assert list(begins) == [i % 100 // 10 * 10 for i in range(2000)]


def test_many_callers_at_once(loops: Loops) -> None:
    """More callers than the pool has slots: each gets its own loops done, with help or without."""
    wrong: list[int] = []

    def caller() -> None:
        for _ in range(100):
            counts, begins = loops.count(300, 7, 4)
            if counts != [1] * 300 or begins != [i // 7 * 7 for i in range(300)]:
                # without a free slot the loop is one call
                if begins == [0] * 300 and counts == [1] * 300:
                    continue
                wrong.append(1)

    callers = [threading.Thread(target=caller) for _ in range(12)]
    for each in callers:
        each.start()
    for each in callers:
        each.join()
    assert not wrong


def test_an_idle_pool_uses_no_processor(loops: Loops) -> None:
    loops.count(1000, 1, 4)
    time.sleep(0.05)  # spinning is over long before
    before = resource.getrusage(resource.RUSAGE_SELF)
    time.sleep(0.5)
    after = resource.getrusage(resource.RUSAGE_SELF)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert used < 0.02


def test_sleeping_workers_wake(loops: Loops) -> None:
    for _ in range(5):
        loops.count(1000, 1, 4)
        time.sleep(0.01)
        assert participants(loops, 4)[0] == 4


def in_child(check: object) -> int:
    """Exit status of a forked child that runs the check; a child that hangs is killed by its alarm."""
    child = os.fork()
    if child == 0:
        import signal

        signal.alarm(20)
        try:
            check()  # type: ignore[operator]
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def test_a_forked_child_starts_threads_of_its_own(loops: Loops) -> None:
    loops.count(1000, 1, 4)

    def check() -> None:
        loops.enter(loops.pool)
        assert os_threads() == 1
        assert participants(loops, 4)[0] == 4
        assert os_threads() == 4
        assert loops.count(1000, 7, 4)[0] == [1] * 1000

    assert in_child(check) == 0
    assert participants(loops, 4)[0] == 4


def test_forking_in_the_middle_of_others_loops(loops: Loops) -> None:
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            loops.count(5000, 3, 4)

    others = [threading.Thread(target=busy) for _ in range(2)]
    for each in others:
        each.start()

    def check() -> None:
        loops.enter(loops.pool)
        for _ in range(20):
            assert loops.count(1000, 7, 4)[0] == [1] * 1000

    try:
        assert [in_child(check) for _ in range(5)] == [0] * 5
    finally:
        stop.set()
        for each in others:
            each.join()


def test_a_child_may_destroy_its_parents_pool(image: Image) -> None:
    pool = image.function("fusile_pool_create", ctypes.c_void_p, ctypes.c_int32)(3)
    destroy = image.function("fusile_pool_destroy", None, ctypes.c_void_p)
    loops = Loops(image, pool)
    loops.count(100, 1, 3)
    assert in_child(lambda: destroy(pool)) == 0
    assert loops.count(100, 1, 3)[0] == [1] * 100
    destroy(pool)


def test_the_hosts_parallel_for_is_given_whole_chunks(loops: Loops) -> None:
    task_type = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
    asked = []

    def parallel_for(
        user: int, task: object, frame: int, count: int, scratch: int, stride: int, threads: int
    ) -> None:
        asked.append((count, stride, threads))
        middle = count // 3
        task(frame, middle, count, (scratch or 0) + stride)  # type: ignore[operator]
        task(frame, 0, middle, scratch)  # type: ignore[operator]

    given = ctypes.CFUNCTYPE(
        None, ctypes.c_void_p, task_type, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64,
        ctypes.c_int32,
    )(parallel_for)  # fmt: skip
    address = ctypes.cast(given, ctypes.c_void_p).value or 0
    counts, begins = loops.count(1000, 7, 4, parallel_for=address)
    assert counts == [1] * 1000
    assert begins == [i // 7 * 7 for i in range(1000)]
    assert asked == [(143, 0, 4)]
    loops.count(10, 10, 4, parallel_for=address)
    assert len(asked) == 1


def test_workers_leave_signals_to_the_application(loops: Loops) -> None:
    loops.count(1000, 1, 4)
    masks = [
        int(re.search(r"SigBlk:\s*(\w+)", Path(f"/proc/self/task/{task}/status").read_text()).group(1), 16)  # type: ignore[union-attr]
        for task in os.listdir("/proc/self/task")
    ]
    assert sum(mask >> 1 & 1 for mask in masks) >= 3  # SIGINT is blocked in the workers
    assert not masks[0] & 2


def test_one_pool_serves_the_process_and_grows(cache: Cache) -> None:
    pool = shared_pool(cache)
    assert shared_pool(cache) is pool
    assert isinstance(pool, SharedPool)
    pool.request(3)
    pool.request(2)
    assert pool.threads == 3
    pool.request(10_000)
    assert pool.threads == 256


def test_layouts_in_llvm_ir_and_ctypes_agree() -> None:
    text = (Path(abi.__file__).parent / "support" / "layout.ll").read_text()
    questions = {"tensor": abi.Tensor, "error": abi.ErrorRecord, "report": abi.ErrorReport, "host": abi.Host}
    size_text = "ret i64 ptrtoint (ptr getelementptr (%{0}, ptr null, i64 1) to i64)"
    sizes = "\n".join(
        f"define hidden i64 @size_{name}() {{\n  {size_text.format(name)}\n}}"
        for name in (*questions, "port", "plan_header", "slot", "context")
    )
    image = load_image(link_image([("sizes", compile_objects([text + sizes], host())[0])]))

    def size(name: str) -> int:
        return int(image.function(f"size_{name}", ctypes.c_int64)())

    for name, structure in questions.items():
        assert size(name) == ctypes.sizeof(structure), name
    assert (size("port"), size("plan_header"), size("slot")) == (72, 64, 1152)
    assert size("context") % 8 == 0
    assert [line for line in abi.TYPES.splitlines() if line not in text] == []
