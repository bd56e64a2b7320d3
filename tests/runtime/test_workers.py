"""Compile workers: objects in order, a crash of LLVM is an error and no more, nobody stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from fusile.runtime import workers
from fusile.runtime.workers import CompileError, compile_objects
from fusile.target import host

CONSTANT = 'source_filename = "{name}"\ndefine hidden i64 @{name}() {{\n  ret i64 {value}\n}}\n'
# An intrinsic of another machine cannot be selected: LLVM aborts.
CRASH = (
    'source_filename = "doomed"\ndeclare void @llvm.aarch64.isb(i32)\n'
    "define void @f() {\n  call void @llvm.aarch64.isb(i32 15)\n  ret void\n}\n"
)

x86_only = pytest.mark.skipif(host().arch != "x86_64", reason="the crash is written for x86-64")


def texts(count: int) -> list[str]:
    return [CONSTANT.format(name=f"k{i}", value=i) + "; padding\n" * i for i in range(count)]


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{process}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


def gone_within(process: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while alive(process) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(process)


def test_objects_come_in_the_order_of_the_texts() -> None:
    objects = compile_objects(texts(9), host(), jobs=2)
    for number, data in enumerate(objects):
        assert data[:4] == b"\x7fELF"
        assert f"k{number}\0".encode() in data


def test_no_texts_no_objects() -> None:
    assert compile_objects([], host()) == []


def test_the_same_text_gives_the_same_bytes_in_any_worker() -> None:
    objects = compile_objects([texts(3)[2]] * 6, host(), jobs=2)
    assert len(set(objects)) == 1


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_every_level_compiles(level: int) -> None:
    assert compile_objects(texts(1), host(), level)[0][:4] == b"\x7fELF"


def test_broken_text_names_the_kernel_and_what_llvm_says() -> None:
    broken = 'source_filename = "half_kernel"\ndefine i32 @f() {\n'
    with pytest.raises(CompileError, match=r"(?s)half_kernel.*expecting more instructions") as caught:
        compile_objects([*texts(2), broken], host())
    assert caught.value.kernel == "half_kernel"
    assert caught.value.text == broken


@x86_only
def test_a_crash_of_llvm_is_an_error_and_the_next_text_compiles() -> None:
    with pytest.raises(CompileError, match=r"'doomed'.*SIGABRT.*Cannot select"):
        compile_objects([CRASH, *texts(3)], host(), jobs=2)
    assert len(compile_objects(texts(2), host())) == 2


def test_module_name_without_a_source_name_is_the_first_function() -> None:
    assert workers.module_name("define hidden i32 @first(ptr %x) {\n}\ndefine void @second() {}") == "first"
    assert workers.module_name("; nothing") == "(unnamed)"


def run_script(body: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(body)], capture_output=True, text=True, timeout=60, check=False
    )


STARTED = """
    import os, signal, sys, time
    from fusile.runtime import workers
    from fusile.target import host
    workers.compile_objects(["define void @f() { ret void }"], host(), jobs=1)
    (worker,) = workers._pool(os.getpid())._idle
    print(worker.process_id, flush=True)
"""


def test_workers_import_neither_numpy_nor_fusile() -> None:
    done = run_script(STARTED + "    print(open(f'/proc/{worker.process_id}/maps').read())")
    assert "llvmlite" in done.stdout
    assert "numpy" not in done.stdout
    assert "multiarray" not in done.stdout


def test_idle_workers_end_and_are_reaped() -> None:
    script = STARTED + "    workers.stop_workers()\n    print(os.path.exists(f'/proc/{worker.process_id}'))"
    assert run_script(script).stdout.split()[1] == "False"


def test_workers_end_by_themselves_when_idle() -> None:
    script = STARTED.replace("    workers.compile", "    workers._IDLE_SECONDS = 0.2\n    workers.compile")
    script += "    time.sleep(1.5)\n    print(os.path.exists(f'/proc/{worker.process_id}'))"
    assert run_script(script).stdout.split()[1] == "False"


@pytest.mark.parametrize("end", ["sys.exit(0)", "os._exit(0)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_workers_die_with_their_parent(end: str) -> None:
    worker = int(run_script(STARTED + f"    {end}").stdout.split()[0])
    assert gone_within(worker, 10)


def test_workers_die_with_their_parent_even_if_a_forked_child_holds_their_pipes() -> None:
    script = (
        STARTED
        + """
    child = os.fork()
    if child == 0:
        os.close(1); os.close(2)
        time.sleep(30)
        os._exit(0)
    print(child, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    """
    )
    worker, child = (int(word) for word in run_script(script).stdout.split())
    try:
        assert gone_within(worker, 10)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_forked_child_has_workers_of_its_own() -> None:
    script = (
        STARTED
        + """
    child = os.fork()
    if child == 0:
        made = workers.compile_objects(["define void @g() { ret void }"], host(), jobs=1)
        os._exit(0 if made[0][:4] == b"\\x7fELF" else 1)
    assert os.waitpid(child, 0)[1] == 0
    workers.compile_objects(["define void @h() { ret void }"], host(), jobs=1)
    print("fine")
    """
    )
    assert run_script(script).stdout.split()[1:] == ["fine"]


def test_start_workers_only_starts() -> None:
    workers.start_workers(2)
    assert len(compile_objects(texts(2), host(), jobs=2)) == 2
