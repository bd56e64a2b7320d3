"""Reading ELF64 relocatable objects, as far as small position-independent code of LLVM's goes, and telling
libraries that were cut short.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from fusile.errors import FusileError

X86_64, AARCH64 = 62, 183

ALLOCATED, EXECUTABLE, WRITABLE, THREAD_LOCAL = 0x2, 0x4, 0x1, 0x400
LOCAL, GLOBAL, WEAK = 0, 1, 2
UNDEFINED, ABSOLUTE, COMMON = 0, 0xFFF1, 0xFFF2

_SYMTAB, _RELA, _NOBITS, _NOTE = 2, 4, 8, 7
_FILE = 4
_EXTENDED = 0xFFFF


class LinkError(FusileError):
    """Object code that cannot become part of a native module; `where` is the object."""


@dataclass(frozen=True, slots=True)
class Section:
    """A section that takes memory: its number in the object, name, flags, contents."""

    index: int
    name: str
    flags: int
    align: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Symbol:
    """A symbol: `section` is a section's number or UNDEFINED, `value` the offset in it."""

    name: str
    binding: int
    section: int
    value: int


@dataclass(frozen=True, slots=True)
class Relocation:
    """Patch `section` at `offset` with the address of `symbol` plus `addend`, encoded as `kind` says."""

    section: int
    offset: int
    kind: int
    symbol: Symbol
    addend: int


@dataclass(frozen=True, slots=True)
class Object:
    """One relocatable object: what it brings to memory, its symbols, its patches."""

    name: str
    machine: int
    sections: tuple[Section, ...]
    symbols: tuple[Symbol, ...]
    relocations: tuple[Relocation, ...]


def read_object(name: str, data: bytes) -> Object:
    """Reads a relocatable ELF64 object; `name` is for error texts. Raises LinkError for writable or
    thread-local data and other formats.

    Unwind tables are left out: native code throws nothing.
    """
    if data[:6] != b"\x7fELF\x02\x01":
        raise LinkError(
            "Object code must be little-endian ELF64", where=name, why=f"it begins with {data[:6].hex()}"
        )
    kind, machine = struct.unpack_from("<HH", data, 16)
    if kind != 1 or machine not in (X86_64, AARCH64):
        raise LinkError(
            "Object code must be relocatable x86-64 or AArch64",
            where=name,
            why=f"kind {kind}, machine {machine}",
        )
    headers = _section_headers(data)
    names = _strings(data, headers[struct.unpack_from("<H", data, 62)[0]])
    sections = []
    for index, header in enumerate(headers):
        section = _read_section(name, data, index, header, names)
        if section is not None:
            sections.append(section)
    symbols: tuple[Symbol, ...] = ()
    for header in headers:
        if header.kind == _SYMTAB:
            symbols = _read_symbols(name, data, header, _strings(data, headers[header.link]))
    kept = {section.index for section in sections}
    relocations = [
        r
        for header in headers
        if header.kind == _RELA and header.info in kept
        for r in _relas(data, header, symbols)
    ]
    return Object(name, machine, tuple(sections), symbols, tuple(relocations))


@dataclass(frozen=True, slots=True)
class _Header:
    name: int
    kind: int
    flags: int
    offset: int
    size: int
    link: int
    info: int
    align: int


def _section_headers(data: bytes) -> list[_Header]:
    (start,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    headers = []
    for index in range(count):
        name, kind, flags, _, offset, length, link, info, align, _ = struct.unpack_from(
            "<IIQQQQIIQQ", data, start + index * size
        )
        headers.append(_Header(name, kind, flags, offset, length, link, info, align))
    return headers


def _strings(data: bytes, header: _Header) -> bytes:
    return data[header.offset : header.offset + header.size]


def _string(table: bytes, offset: int) -> str:
    return table[offset : table.index(b"\0", offset)].decode("utf-8", "surrogateescape")


def _read_section(where: str, data: bytes, index: int, header: _Header, names: bytes) -> Section | None:
    """A section that belongs in memory, or None. Refuses memory that is written to."""
    name = _string(names, header.name)
    if not header.flags & ALLOCATED or header.size == 0 or header.kind == _NOTE or name == ".eh_frame":
        return None
    if header.flags & THREAD_LOCAL:
        raise LinkError("Native modules have no thread-local variables", where=f"{where}, section {name}")
    if header.flags & WRITABLE:
        why = (
            "constant tables must hold offsets, not addresses"
            if ".rel.ro" in name
            else "state lives on the heap"
        )
        raise LinkError("Native modules have no writable globals", where=f"{where}, section {name}", why=why)
    contents = (
        bytes(header.size) if header.kind == _NOBITS else data[header.offset : header.offset + header.size]
    )
    return Section(index, name, header.flags, max(1, header.align), contents)


def _read_symbols(where: str, data: bytes, header: _Header, names: bytes) -> tuple[Symbol, ...]:
    symbols = []
    for offset in range(header.offset, header.offset + header.size, 24):
        name, info, _, section, value, _ = struct.unpack_from("<IBBHQQ", data, offset)
        if section in (COMMON, _EXTENDED) or (section == ABSOLUTE and info & 15 != _FILE):
            raise LinkError(
                "A symbol has neither a section nor is it undefined",
                where=f"{where}, symbol {_string(names, name)}",
            )
        symbols.append(Symbol(_string(names, name), info >> 4, section, value))
    return tuple(symbols)


def _relas(data: bytes, header: _Header, symbols: tuple[Symbol, ...]) -> list[Relocation]:
    found = []
    for start in range(header.offset, header.offset + header.size, 24):
        offset, info, addend = struct.unpack_from("<QQq", data, start)
        found.append(Relocation(header.info, offset, info & 0xFFFFFFFF, symbols[info >> 32], addend))
    return found


def is_whole(path: Path) -> bool:
    """Whether a library is as long as its program and section headers say.

    The system's loader maps what the headers promise, and touching what the file lacks kills the process.
    Files of other formats count as whole: the loader refuses them by itself.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(64)
        if len(head) < 64 or head[:6] != b"\x7fELF\x02\x01":
            return True
        programs, sections = struct.unpack_from("<QQ", head, 32)
        program_size, program_count, section_size, section_count = struct.unpack_from("<HHHH", head, 54)
        tables = (
            (programs, program_size, program_count, "<8xQ16xQ", 56),
            (sections, section_size, section_count, "<4xI16xQQ", 64),
        )
        for start, each, count, layout, least in tables:
            if count and (each < least or start + each * count > size):
                return False
            file.seek(start)
            table = file.read(each * count)
            for at in range(0, each * count, each or 1):
                *kind, offset, length = struct.unpack_from(layout, table, at)
                if kind != [_NOBITS] and offset + length > size:
                    return False
    return True


def data_object(machine: int, symbol: str, size: int) -> tuple[bytes, bytes]:
    """What stands before and behind `size` bytes of constant data to make them an object that defines a
    hidden symbol.

    The data is aligned to 4096, in the object and in what is linked from it. So weights become part of a
    library by copying a file, with no assembler.
    """
    strings = b"\0" + symbol.encode("ascii") + b"\0"
    names = b"\0.rodata.weights\0.symtab\0.strtab\0.shstrtab\0.note.GNU-stack\0"
    symbols = bytes(24) + struct.pack(
        "<IBBHQQ", 1, GLOBAL << 4 | 1, 2, 1, 0, size
    )  # object, hidden, section 1
    data_at = 4096
    symbols_at = -(-(data_at + size) // 8) * 8
    strings_at = symbols_at + len(symbols)
    names_at = strings_at + len(strings)
    headers_at = -(-(names_at + len(names)) // 8) * 8

    def header(
        name: bytes, kind: int, flags: int, at: int, length: int, link: int, info: int, align: int, item: int
    ) -> bytes:
        where = names.index(name + b"\0") if name else 0
        return struct.pack("<IIQQQQIIQQ", where, kind, flags, 0, at, length, link, info, align, item)

    headers = (
        bytes(64),
        header(b".rodata.weights", 1, ALLOCATED, data_at, size, 0, 0, 4096, 0),
        header(b".symtab", _SYMTAB, 0, symbols_at, len(symbols), 3, 1, 8, 24),
        header(b".strtab", 3, 0, strings_at, len(strings), 0, 0, 1, 0),
        header(b".shstrtab", 3, 0, names_at, len(names), 0, 0, 1, 0),
        header(b".note.GNU-stack", 1, 0, names_at, 0, 0, 0, 1, 0),
    )
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    rest = struct.pack("<HHIQQQIHHHHHH", 1, machine, 1, 0, 0, headers_at, 0, 64, 0, 0, 64, len(headers), 4)
    head = (ident + rest).ljust(data_at, b"\0")
    tail = bytes(symbols_at - data_at - size) + symbols + strings + names
    return head, tail.ljust(headers_at - data_at - size, b"\0") + b"".join(headers)
