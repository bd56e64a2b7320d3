"""Our own small linker: relocatable objects in, one flat position-independent image out; see image.py for the
file that it writes.

An image is code, then constants, then a page of slots: addresses of functions outside the image, filled when
it is loaded. Nothing in it is written to after that, so any number of processes map the same file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fusile.runtime import relocations
from fusile.runtime.elf import (
    AARCH64,
    EXECUTABLE,
    LOCAL,
    UNDEFINED,
    WEAK,
    LinkError,
    Object,
    Relocation,
    Symbol,
    read_object,
)
from fusile.runtime.image import Image, ImageLayout, Slot, load_image, write_image
from fusile.runtime.relocations import STUB_BYTES, RangeError, Wants

__all__ = ["Image", "LinkError", "link_image", "load_image"]

_PAGE = {AARCH64: 1 << 16}  # AArch64 kernels use pages of 4, 16 or 64 KiB
_DEFAULT_PAGE = 1 << 12


def link_image(objects: Sequence[tuple[str, bytes]]) -> bytes:
    """Links named relocatable objects (ELF64, one machine) to an image, for `load_image` or a file.

    Symbols resolve across objects whatever their visibility; strong ones go before weak ones. What no object
    defines is looked up in the C library when the image is loaded. Raises LinkError for writable or
    thread-local data, for absolute addresses, for symbols that are defined twice and for relocations that are
    unknown or out of range.
    """
    link = _Link([read_object(name, data) for name, data in objects])
    link.place_sections()
    link.define_symbols()
    link.collect_slots()
    memory = link.write()
    return write_image(link.layout(), memory)


@dataclass
class _Link:
    """The state of one linking: its steps are the methods, in the order in which they stand here."""

    objects: list[Object]
    machine: int = 0
    page: int = _DEFAULT_PAGE
    text_end: int = 0
    constants: int = 0
    constants_end: int = 0
    addresses: dict[tuple[int, int], int] = field(default_factory=dict)  # (object, section) -> address
    globals: dict[str, int] = field(default_factory=dict)  # symbol -> address
    slots: dict[tuple[str, int], int] = field(
        default_factory=dict
    )  # (outside name, address inside) -> number
    stubs: dict[str, int] = field(default_factory=dict)  # outside name -> stub's address
    stub_base: int = 0

    def place_sections(self) -> None:
        """Gives every section an address: code first, room for stubs, constants from the next page."""
        machines = {o.machine for o in self.objects}
        if len(machines) != 1:
            raise LinkError("Objects to link must be of one machine", why=f"machines {sorted(machines)}")
        (self.machine,) = machines
        self.page = _PAGE.get(self.machine, _DEFAULT_PAGE)
        self.stub_base = _up(self._place(0, executable=True), STUB_BYTES)
        outside = self._outside()
        self.text_end = self.stub_base + STUB_BYTES * len(outside)
        self.stubs = {name: self.stub_base + STUB_BYTES * index for index, name in enumerate(outside)}
        self.constants = _up(self.text_end, self.page)
        self.constants_end = self._place(self.constants, executable=False)

    def _place(self, address: int, *, executable: bool) -> int:
        for number, obj in enumerate(self.objects):
            for section in obj.sections:
                if bool(section.flags & EXECUTABLE) == executable:
                    address = _up(address, section.align)
                    self.addresses[number, section.index] = address
                    address += len(section.data)
        return address

    def _outside(self) -> Mapping[str, bool]:
        """Names that no object defines, in order of appearance; True where one may be missing (weak)."""
        defined = {
            s.name for o in self.objects for s in o.symbols if s.section != UNDEFINED and s.binding != LOCAL
        }
        found: dict[str, bool] = {}
        for obj in self.objects:
            for symbol in obj.symbols:
                if symbol.section == UNDEFINED and symbol.name and symbol.name not in defined:
                    found[symbol.name] = found.get(symbol.name, True) and symbol.binding == WEAK
        return found

    def define_symbols(self) -> None:
        """Gives every global symbol its address."""
        strong: dict[str, str] = {}
        for number, obj in enumerate(self.objects):
            for symbol in obj.symbols:
                place = self.addresses.get((number, symbol.section))
                if symbol.binding == LOCAL or place is None:
                    continue
                if symbol.binding != WEAK:
                    if symbol.name in strong:
                        raise LinkError(
                            f"Symbol {symbol.name!r} is defined twice",
                            where=f"{strong[symbol.name]} and {obj.name}",
                        )
                    strong[symbol.name] = obj.name
                    self.globals[symbol.name] = place + symbol.value
                else:
                    self.globals.setdefault(symbol.name, place + symbol.value)

    def collect_slots(self) -> None:
        """A slot for each outside function, and for each symbol of ours whose address is read from a slot."""
        for name in self.stubs:
            self.slots[name, 0] = len(self.slots)
        for number, obj in enumerate(self.objects):
            for relocation in obj.relocations:
                kind = relocations.KINDS[self.machine].get(relocation.kind)
                if kind is not None and kind.wants is Wants.SLOT:
                    self.slots.setdefault(self._slot_key(number, relocation), len(self.slots))

    def write(self) -> bytearray:
        """The image's memory up to the slots: sections, stubs, and all relocations applied."""
        memory = bytearray(self.constants_end)
        for number, obj in enumerate(self.objects):
            for section in obj.sections:
                start = self.addresses[number, section.index]
                memory[start : start + len(section.data)] = section.data
        for name, place in self.stubs.items():
            slot = self._slot_address((name, 0))
            memory[place : place + STUB_BYTES] = relocations.stub(self.machine, place, slot)
        for number, obj in enumerate(self.objects):
            for relocation in obj.relocations:
                self._apply(memory, number, relocation)
        return memory

    def _apply(self, memory: bytearray, number: int, relocation: Relocation) -> None:
        obj, symbol = self.objects[number], relocation.symbol
        where = f"{obj.name}, symbol {symbol.name!r}"
        kind = relocations.KINDS[self.machine].get(relocation.kind)
        if relocation.kind in relocations.ABSOLUTE[self.machine]:
            raise LinkError(
                "Native modules hold no absolute addresses",
                where=where,
                why="constant tables must hold offsets instead",
            )
        if kind is None:
            raise LinkError(f"Relocation {relocation.kind} is not one that our linker knows", where=where)
        if kind.wants is Wants.SLOT:
            address = self._slot_address(self._slot_key(number, relocation))
        elif kind.wants is Wants.CALL and self._is_outside(symbol):
            address = self.stubs[symbol.name]
        else:
            address = self._inside(number, relocation)
        place = self.addresses[number, relocation.section] + relocation.offset
        try:
            kind.patch(memory, place, address, relocation.addend)
        except RangeError as error:
            raise LinkError(f"{kind.name} does not reach", where=where, why=str(error)) from None

    def _inside(self, number: int, relocation: Relocation) -> int:
        """The address of a symbol that must be in the image."""
        symbol = relocation.symbol
        address = self._local(number, symbol) if symbol.binding == LOCAL else self.globals.get(symbol.name)
        if address is None:
            raise LinkError(
                f"Symbol {symbol.name!r} is used as data of this module and no object defines it",
                where=self.objects[number].name,
                why="only functions of the C library may be undefined, and those are called",
            )
        return address

    def _local(self, number: int, symbol: Symbol) -> int | None:
        place = self.addresses.get((number, symbol.section))
        return None if place is None else place + symbol.value

    def _is_outside(self, symbol: Symbol) -> bool:
        return symbol.section == UNDEFINED and symbol.name in self.stubs

    def _slot_key(self, number: int, relocation: Relocation) -> tuple[str, int]:
        name = relocation.symbol.name
        return (name, 0) if self._is_outside(relocation.symbol) else ("", self._inside(number, relocation))

    def _slot_base(self) -> int:
        return _up(self.constants_end, self.page)

    def _slot_address(self, key: tuple[str, int]) -> int:
        return self._slot_base() + 8 * self.slots[key]

    def layout(self) -> ImageLayout:
        """What the loader has to know."""
        weak = self._outside()
        return ImageLayout(
            machine=self.machine,
            page=self.page,
            text_bytes=self.text_end,
            constants=self.constants,
            constants_bytes=self.constants_end - self.constants,
            slots_at=self._slot_base(),
            slots=tuple(Slot(name, weak.get(name, False), inside) for name, inside in self.slots),
            symbols=dict(self.globals),
        )


def _up(value: int, step: int) -> int:
    return -(-value // step) * step
