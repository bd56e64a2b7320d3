"""The linker: images run, and for AArch64 each patched instruction says what it should."""

from __future__ import annotations

import ctypes
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from fusile.runtime import elf, relocations
from fusile.runtime.elf import LinkError, read_object
from fusile.runtime.image import Image, load_image, read_layout
from fusile.runtime.link import link_image
from fusile.runtime.native_support import interface_text, support_text
from fusile.runtime.workers import compile_objects
from fusile.target import TargetSpec, for_cpu, host

ARM = for_cpu("armv8-a", "aarch64-unknown-linux-gnu")
X86 = for_cpu("x86-64", "x86_64-unknown-linux-gnu")

MAIN = """source_filename = "main"
declare hidden i64 @helper(i64)
declare double @cos(double)
declare i32 @memcmp(ptr, ptr, i64)
@numbers = hidden constant [4 x i64] [i64 3, i64 1, i64 4, i64 1]
@other = external hidden constant [2 x i64]
@wide = hidden constant <8 x float> splat (float 1.5), align 64

define hidden i64 @twice_helped(i64 %x) {
  %a = call i64 @helper(i64 %x)
  %b = call i64 @helper(i64 %a)
  ret i64 %b
}
define hidden double @cosine(double %x) {
  %y = call double @cos(double %x)
  ret double %y
}
define hidden i64 @table(i64 %i) {
  %place = getelementptr [4 x i64], ptr @numbers, i64 0, i64 %i
  %mine = load i64, ptr %place
  %theirs = load i64, ptr getelementptr ([2 x i64], ptr @other, i64 0, i64 1)
  %sum = add i64 %mine, %theirs
  ret i64 %sum
}
define hidden ptr @wide_address() {
  ret ptr @wide
}
define hidden ptr @address_of_outside() {
  ret ptr @memcmp
}
define i64 @visible(i64 %x) {
  ret i64 %x
}
define hidden ptr @address_of_inside() {
  ret ptr @visible
}
define hidden i64 @chosen(i64 %x) {
entry:
  switch i64 %x, label %other [ i64 0, label %a
                                i64 1, label %b
                                i64 2, label %c
                                i64 3, label %d
                                i64 4, label %e ]
a:
  %r.a = call i64 @helper(i64 10)
  ret i64 %r.a
b:
  %r.b = call i64 @visible(i64 20)
  ret i64 %r.b
c:
  %r.c = call i64 @twice_helped(i64 30)
  ret i64 %r.c
d:
  %r.d = call i64 @table(i64 0)
  ret i64 %r.d
e:
  ret i64 50
other:
  ret i64 -1
}
"""
HELPER = """source_filename = "helper"
@other = hidden constant [2 x i64] [i64 0, i64 100]
define hidden i64 @helper(i64 %x) {
  %y = add i64 %x, 1
  ret i64 %y
}
"""


def named(texts: Sequence[str], target: TargetSpec, level: int = 1) -> list[tuple[str, bytes]]:
    return [(f"o{i}", data) for i, data in enumerate(compile_objects(texts, target, level))]


@pytest.fixture(scope="module", params=[0, 1, 3])
def image(request: pytest.FixtureRequest) -> Image:
    return load_image(link_image(named([MAIN, HELPER], host(), request.param)))


def call(image: Image, name: str, *arguments: int) -> int:
    function = image.function(name, ctypes.c_int64, *(ctypes.c_int64 for _ in arguments))
    return int(function(*arguments))


def test_calls_between_objects(image: Image) -> None:
    assert call(image, "twice_helped", 40) == 42


def test_calls_to_the_c_library(image: Image) -> None:
    assert image.function("cosine", ctypes.c_double, ctypes.c_double)(0.0) == 1.0


def test_constants_of_this_object_and_another(image: Image) -> None:
    assert [call(image, "table", i) for i in range(4)] == [103, 101, 104, 101]


def test_constants_keep_their_alignment(image: Image) -> None:
    assert call(image, "wide_address") % 64 == 0
    assert call(image, "wide_address") == image.symbol("wide")


def test_addresses_of_functions(image: Image) -> None:
    assert call(image, "address_of_inside") == image.symbol("visible")
    compare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_long)
    assert compare(call(image, "address_of_outside"))(b"same", b"same", 4) == 0


def test_jump_tables(image: Image) -> None:
    assert [call(image, "chosen", i) for i in range(6)] == [11, 20, 32, 103, 50, -1]


def test_linking_is_deterministic() -> None:
    objects = named([MAIN, HELPER], host())
    assert link_image(objects) == link_image(objects)


WEAK = """
define weak hidden i64 @pick() {
  ret i64 1
}
define hidden i64 @ask() {
  %x = call i64 @pick()
  ret i64 %x
}
"""
STRONG = "define hidden i64 @pick() {\n  ret i64 2\n}\n"


@pytest.mark.parametrize("texts", [[WEAK, STRONG], [STRONG, WEAK]])
def test_strong_symbols_go_before_weak_ones(texts: list[str]) -> None:
    assert call(load_image(link_image(named(texts, host(), 0))), "ask") == 2


def test_equal_weak_symbols_are_one() -> None:
    again = WEAK.replace("@ask", "@ask_too")
    image = load_image(link_image(named([WEAK, again], host(), 0)))
    assert (call(image, "ask"), call(image, "ask_too")) == (1, 1)


def test_an_optional_outside_function_may_be_missing() -> None:
    text = (
        "declare extern_weak void @no_such_function_anywhere()\n"
        "define hidden ptr @maybe() {\n  ret ptr @no_such_function_anywhere\n}\n"
    )
    assert call(load_image(link_image(named([text], host()))), "maybe") == 0


REFUSED = {
    "writable": (
        "@state = hidden global i64 1\ndefine ptr @f() {\n  ret ptr @state\n}\n",
        "no writable globals.*heap",
    ),
    "zeros": (
        "@state = hidden global i64 0\ndefine ptr @f() {\n  ret ptr @state\n}\n",
        "no writable globals",
    ),
    "thread": (
        "@state = hidden thread_local global i64 1\n"
        "define i64 @f() {\n  %x = load i64, ptr @state\n  ret i64 %x\n}\n",
        "no thread-local",
    ),
    "address": (
        "@table = hidden constant [1 x ptr] [ptr @f]\ndefine ptr @f() {\n  ret ptr @table\n}\n",
        "constant tables must hold offsets",
    ),
    "data of nobody": (
        "@lost = external hidden global i64\ndefine hidden ptr @f() {\n  ret ptr @lost\n}\n",
        "'lost' is used as data.*no object defines it",
    ),
}


@pytest.mark.parametrize("target", [X86, ARM], ids=["x86-64", "aarch64"])
@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_place_in_an_image_is_refused_by_name(case: str, target: TargetSpec) -> None:
    text, says = REFUSED[case]
    with pytest.raises(LinkError, match=f"(?s){says}"):
        link_image([("kernel_7", compile_objects([text], target, 0)[0])])


def test_a_symbol_defined_twice_names_both_objects() -> None:
    with pytest.raises(LinkError, match=r"'pick' is defined twice \(o0 and o1\)"):
        link_image(named([STRONG, STRONG], host()))


def test_foreign_files_are_refused() -> None:
    with pytest.raises(LinkError, match="ELF64"):
        read_object("kernel_7", b"MZ" + bytes(100))
    with pytest.raises(LinkError, match="one machine"):
        link_image([*named([STRONG], X86), *named([HELPER], ARM)])


def test_a_missing_outside_function_is_named_at_loading() -> None:
    text = "declare void @no_such_function_anywhere()\n"
    text += "define void @f() {\n  call void @no_such_function_anywhere()\n  ret void\n}\n"
    with pytest.raises(Exception, match="'no_such_function_anywhere'"):
        load_image(link_image(named([text], host())))


# ---- AArch64: what each instruction says after linking, read back by the architecture's own encoding


def sign(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) & 1 else value


def adrp_page(word: int, place: int) -> int:
    assert word & 0x9F000000 == 0x90000000, f"{word:#x} is no ADRP"
    offset = sign((word >> 5 & 0x7FFFF) << 2 | word >> 29 & 3, 21)
    return (place & ~0xFFF) + (offset << 12)


def read_back(kind: int, word: int, place: int) -> int:
    """What a patched instruction or word refers to: an address, or the low twelve bits of one."""
    scale = {277: 1, 278: 1, 284: 2, 285: 4, 286: 8, 299: 16, 312: 8}.get(kind)
    if scale is not None:
        return (word >> 10 & 0xFFF) * scale
    if kind in (282, 283):
        assert word >> 26 in (0b000101, 0b100101)
        return place + 4 * sign(word & 0x3FFFFFF, 26)
    if kind in (275, 311):
        return adrp_page(word, place)
    assert kind == 261, kind
    return place + sign(word, 32)


def memory_of(data: bytes) -> bytes:
    """Code and constants of an image file."""
    layout = read_layout(data)
    (length,) = struct.unpack_from("<I", data, 20)
    start = -(-(64 + length) // layout.page) * layout.page
    return data[start:]


@pytest.mark.parametrize("level", [0, 1, 3])
def test_aarch64_instructions_refer_to_what_they_should(level: int) -> None:
    objects = named([MAIN, HELPER, support_text(ARM)], ARM, level)
    data = link_image(objects)
    layout, memory = read_layout(data), memory_of(data)
    seen = set()
    for name, raw in objects:
        obj = read_object(name, raw)
        bases = section_bases(obj, layout.symbols)
        for relocation in obj.relocations:
            if relocation.section not in bases or relocation.symbol.section == elf.UNDEFINED:
                continue
            symbol = relocation.symbol
            if symbol.binding == elf.LOCAL and symbol.section not in bases:
                continue
            kind = relocation.kind
            wanted = relocation.addend + (
                layout.symbols[symbol.name]
                if symbol.binding != elf.LOCAL
                else bases[symbol.section] + symbol.value
            )
            place = bases[relocation.section] + relocation.offset
            (word,) = struct.unpack_from("<I", memory, place)
            if relocations.KINDS[elf.AARCH64][kind].wants is relocations.Wants.SLOT:
                slots = {layout.slots_at + 8 * n for n, s in enumerate(layout.slots) if s.inside == wanted}
                expected = {at & ~0xFFF if kind == 311 else at & 0xFFF for at in slots}
                assert read_back(kind, word, place) in expected
            else:
                low = kind in (277, 278, 284, 285, 286, 299)
                expected = wanted & 0xFFF if low else wanted & ~0xFFF if kind == 275 else wanted
                assert read_back(kind, word, place) == expected, (name, kind, symbol.name)
            seen.add(kind)
    assert {275, 277, 283} <= seen


def section_bases(obj: elf.Object, symbols: dict[str, int]) -> dict[int, int]:
    """Where an object's sections lie in the image, from its global symbols."""
    return {
        s.section: symbols[s.name] - s.value
        for s in obj.symbols
        if s.binding != elf.LOCAL and s.section != elf.UNDEFINED and s.name in symbols
    }


def test_aarch64_stubs_jump_through_their_slots() -> None:
    data = link_image(named([MAIN, HELPER], ARM))
    layout, memory = read_layout(data), memory_of(data)
    outside = {slot.outside: n for n, slot in enumerate(layout.slots) if slot.outside}
    assert set(outside) == {"cos", "memcmp"}
    cosine = layout.symbols["cosine"]
    branches = [
        place + 4 * sign(word & 0x3FFFFFF, 26)
        for place in range(cosine, cosine + 32, 4)
        for (word,) in [struct.unpack_from("<I", memory, place)]
        if word >> 26 in (0b000101, 0b100101)
    ]
    stub = branches[0]
    adrp, load, jump = struct.unpack_from("<III", memory, stub)
    assert (adrp & 31, load & 0xFFC003FF, jump) == (
        16,
        0xF9400211,
        0xD61F0220,
    )  # x16; ldr x17, [x16, ..]; br x17
    slot = adrp_page(adrp, stub) + (load >> 10 & 0xFFF) * 8
    assert slot == layout.slots_at + 8 * outside["cos"]


# Encodings by hand from the architecture manual: instruction before, place, address, instruction after.
@pytest.mark.parametrize(
    ("kind", "before", "place", "address", "after"),
    [
        (275, 0x90000000, 0x1000, 0x5234, 0x90000020),  # adrp x0, +4 pages
        (275, 0x90000001, 0x5000, 0x1FFF, 0x90FFFFE1),  # adrp x1, -4 pages
        (275, 0x90000000, 0x0FFC, 0x3000, 0xF0000000),  # adrp x0, +3 pages: the low two bits stand at 29
        (277, 0x91000000, 0, 0x5234, 0x9108D000),  # add x0, x0, #0x234
        (278, 0x39400000, 0, 0x5234, 0x3948D000),  # ldrb w0, [x0, #0x234]
        (284, 0x79400000, 0, 0x5234, 0x79446800),  # ldrh w0, [x0, #0x234]
        (285, 0xB9400000, 0, 0x5234, 0xB9423400),  # ldr w0, [x0, #0x234]
        (286, 0xF9400000, 0, 0x5238, 0xF9411C00),  # ldr x0, [x0, #0x238]
        (299, 0x3DC00000, 0, 0x5230, 0x3DC08C00),  # ldr q0, [x0, #0x230]
        (283, 0x94000000, 0x1000, 0x1010, 0x94000004),  # bl +16
        (282, 0x14000000, 0x1010, 0x1000, 0x17FFFFFC),  # b -16
        (280, 0x54000001, 0x1000, 0x1020, 0x54000101),  # b.ne +32
        (279, 0x36000000, 0x1000, 0x0FFC, 0x3607FFE0),  # tbz w0, #0, -4
        (273, 0x58000000, 0x1000, 0x1008, 0x58000040),  # ldr x0, +8
        (274, 0x10000000, 0x1000, 0x1003, 0x70000000),  # adr x0, +3
        (261, 0, 0x1000, 0x0FF8, 0xFFFFFFF8),
    ],
)
def test_aarch64_encodings(kind: int, before: int, place: int, address: int, after: int) -> None:
    memory = bytearray(place) + struct.pack("<I", before)
    relocations.KINDS[elf.AARCH64][kind].patch(memory, place, address, 0)
    assert struct.unpack_from("<I", memory, place)[0] == after


@pytest.mark.parametrize(
    ("machine", "kind", "address"),
    [
        (elf.AARCH64, 283, 1 << 28),  # too far
        (elf.AARCH64, 283, 2),  # not a multiple of four
        (elf.AARCH64, 275, 1 << 33),
        (elf.AARCH64, 286, 4),  # not aligned to the access
        (elf.X86_64, 2, 1 << 31),
        (elf.X86_64, 4, -(1 << 31) - 1),
    ],
)
def test_what_does_not_fit_is_refused(machine: int, kind: int, address: int) -> None:
    with pytest.raises(relocations.RangeError):
        relocations.KINDS[machine][kind].patch(bytearray(8), 0, address, 0)


LOADER = """
#include <dlfcn.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
static const char *outside[] = {%(outside)s};
static const uint64_t inside[] = {%(inside)s};
int main(int count, char **words) {
    FILE *file = fopen(words[1], "rb");
    char *base = mmap(0, %(bytes)d, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    size_t length = fread(base, 1, %(bytes)d, file);
    for (int i = 0; i < %(slots)d; ++i) {
        void *address = *outside[i] ? dlsym(RTLD_DEFAULT, outside[i]) : base + inside[i];
        memcpy(base + %(slots_at)d + 8 * i, &address, 8);
    }
    __builtin___clear_cache(base, base + length);
    int64_t (*twice)(int64_t) = (void *)(base + %(twice_helped)d);
    int64_t (*chosen)(int64_t) = (void *)(base + %(chosen)d);
    double (*cosine)(double) = (void *)(base + %(cosine)d);
    void *(*inner)(void) = (void *)(base + %(address_of_inside)d);
    printf("%%d %%.1f %%d", (int)twice(40), cosine(0), inner() == base + %(visible)d);
    for (int i = 0; i < 6; ++i)
        printf(" %%d", (int)chosen(i));
    return (int)(0 * (count + fabs(cos(count))));
}
"""


@pytest.mark.skipif(
    shutil.which("aarch64-linux-gnu-gcc") is None or shutil.which("qemu-aarch64") is None,
    reason="needs a cross compiler and an emulator",
)
@pytest.mark.parametrize("level", [0, 3])
def test_an_aarch64_image_runs_in_an_emulator(level: int, tmp_path: Path) -> None:
    data = link_image(named([MAIN, HELPER], ARM, level))
    layout = read_layout(data)
    (tmp_path / "memory").write_bytes(memory_of(data))
    text = LOADER % (
        layout.symbols
        | {
            "outside": ", ".join(f'"{slot.outside}"' for slot in layout.slots),
            "inside": ", ".join(str(slot.inside) for slot in layout.slots),
            "bytes": layout.memory_bytes,
            "slots": len(layout.slots),
            "slots_at": layout.slots_at,
        }
    )
    (tmp_path / "loader.c").write_text(text)
    compiler = ["aarch64-linux-gnu-gcc", "-D_GNU_SOURCE", "-O0", "loader.c", "-lm", "-o", "loader"]
    subprocess.run(compiler, cwd=tmp_path, check=True)
    emulator = ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", "./loader", "memory"]
    done = subprocess.run(emulator, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "42 1.0 1 11 20 32 103 50 -1", done.stderr


@pytest.mark.parametrize("target", [X86, ARM], ids=["x86-64", "aarch64"])
def test_support_code_links_with_a_plan_for_both_machines(target: TargetSpec) -> None:
    import tiny_plan

    data = link_image(named([support_text(target), interface_text(), tiny_plan.TEXT], target, 3))
    layout = read_layout(data)
    assert {"api_run", "plan_run", "fusile_parallel", "fusile_pool_create"} <= set(layout.symbols)
    assert {"pthread_create", "posix_memalign"} <= {slot.outside for slot in layout.slots}
