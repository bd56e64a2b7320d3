"""Patching instructions: what each relocation of small position-independent code means, per machine.

A row says which address a relocation wants (the symbol's, a stub's that a call may end at, or that of the
slot which holds the symbol's address) and how it is written into the place. Addresses are offsets in an image
that is loaded at a page boundary, so differences and the low twelve bits are final.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable
from dataclasses import dataclass

from fusile.runtime.elf import AARCH64, X86_64


class Wants(enum.Enum):
    """Which address a relocation speaks of."""

    SYMBOL = "symbol"  # code or constants of this image
    CALL = "call"  # a function: of this image, or a stub to one outside
    SLOT = "slot"  # the slot that holds the symbol's address


class RangeError(Exception):
    """The distance does not fit into the instruction."""


Patch = Callable[[bytearray, int, int, int], None]
"""(memory, place, address wanted, addend): writes into memory at place."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A relocation: its name, the address that it wants, how it is written."""

    name: str
    wants: Wants
    patch: Patch


def _fit(value: int, bits: int, step: int = 1) -> int:
    """The value divided by step as an unsigned field of that many bits, where it fits as a signed one."""
    count, rest = divmod(value, step)
    if rest or not -(1 << (bits - 1)) <= count < 1 << (bits - 1):
        raise RangeError(f"distance {value:#x}")
    return count & ((1 << bits) - 1)


def _relative(bits: int) -> Patch:
    form = {16: "<H", 32: "<I", 64: "<Q"}[bits]

    def patch(memory: bytearray, place: int, address: int, addend: int) -> None:
        struct.pack_into(form, memory, place, _fit(address + addend - place, bits))

    return patch


def _field(memory: bytearray, place: int, mask: int, bits: int) -> None:
    """Replaces the bits under the mask of the 32-bit instruction at place."""
    (word,) = struct.unpack_from("<I", memory, place)
    struct.pack_into("<I", memory, place, (word & ~mask & 0xFFFFFFFF) | (bits & mask))


def _branch(bits: int, shift: int) -> Patch:
    """A branch: a distance in words, `bits` wide, `shift` bits up in the instruction."""

    def patch(memory: bytearray, place: int, address: int, addend: int) -> None:
        field = _fit(address + addend - place, bits, 4)
        _field(memory, place, ((1 << bits) - 1) << shift, field << shift)

    return patch


def _adr(memory: bytearray, place: int, distance: int) -> None:
    """The split 21-bit field of ADR and ADRP: two low bits at 29, the others at 5."""
    field = _fit(distance, 21)
    _field(memory, place, 0x60FFFFE0, (field & 3) << 29 | (field >> 2) << 5)


def _adr_byte(memory: bytearray, place: int, address: int, addend: int) -> None:
    _adr(memory, place, address + addend - place)


def _adr_page(memory: bytearray, place: int, address: int, addend: int) -> None:
    _adr(memory, place, ((address + addend) >> 12) - (place >> 12))


def _low12(scale: int) -> Patch:
    """The low twelve bits of an address, in units of the access size, at bit 10 of ADD, LDR and STR."""

    def patch(memory: bytearray, place: int, address: int, addend: int) -> None:
        low = (address + addend) & 0xFFF
        if low % scale:
            raise RangeError(f"address {address + addend:#x} is not aligned to {scale}")
        _field(memory, place, 0xFFF << 10, low // scale << 10)

    return patch


_X86_64 = {
    2: Kind("R_X86_64_PC32", Wants.SYMBOL, _relative(32)),
    4: Kind("R_X86_64_PLT32", Wants.CALL, _relative(32)),
    9: Kind("R_X86_64_GOTPCREL", Wants.SLOT, _relative(32)),
    24: Kind("R_X86_64_PC64", Wants.SYMBOL, _relative(64)),
    41: Kind("R_X86_64_GOTPCRELX", Wants.SLOT, _relative(32)),
    42: Kind("R_X86_64_REX_GOTPCRELX", Wants.SLOT, _relative(32)),
}

_AARCH64 = {
    260: Kind("R_AARCH64_PREL64", Wants.SYMBOL, _relative(64)),
    261: Kind("R_AARCH64_PREL32", Wants.SYMBOL, _relative(32)),
    262: Kind("R_AARCH64_PREL16", Wants.SYMBOL, _relative(16)),
    273: Kind("R_AARCH64_LD_PREL_LO19", Wants.SYMBOL, _branch(19, 5)),
    274: Kind("R_AARCH64_ADR_PREL_LO21", Wants.SYMBOL, _adr_byte),
    275: Kind("R_AARCH64_ADR_PREL_PG_HI21", Wants.SYMBOL, _adr_page),
    277: Kind("R_AARCH64_ADD_ABS_LO12_NC", Wants.SYMBOL, _low12(1)),
    278: Kind("R_AARCH64_LDST8_ABS_LO12_NC", Wants.SYMBOL, _low12(1)),
    279: Kind("R_AARCH64_TSTBR14", Wants.SYMBOL, _branch(14, 5)),
    280: Kind("R_AARCH64_CONDBR19", Wants.SYMBOL, _branch(19, 5)),
    282: Kind("R_AARCH64_JUMP26", Wants.CALL, _branch(26, 0)),
    283: Kind("R_AARCH64_CALL26", Wants.CALL, _branch(26, 0)),
    284: Kind("R_AARCH64_LDST16_ABS_LO12_NC", Wants.SYMBOL, _low12(2)),
    285: Kind("R_AARCH64_LDST32_ABS_LO12_NC", Wants.SYMBOL, _low12(4)),
    286: Kind("R_AARCH64_LDST64_ABS_LO12_NC", Wants.SYMBOL, _low12(8)),
    299: Kind("R_AARCH64_LDST128_ABS_LO12_NC", Wants.SYMBOL, _low12(16)),
    311: Kind("R_AARCH64_ADR_GOT_PAGE", Wants.SLOT, _adr_page),
    312: Kind("R_AARCH64_LD64_GOT_LO12_NC", Wants.SLOT, _low12(8)),
}

KINDS = {X86_64: _X86_64, AARCH64: _AARCH64}
ABSOLUTE = {X86_64: frozenset({1, 10, 11}), AARCH64: frozenset({257, 258, 259})}
"""Relocations that write an address, which a position-independent image does not have before it is loaded."""

STUB_BYTES = 16


def stub(machine: int, place: int, slot: int) -> bytes:
    """Code at `place` that jumps to where the slot points; as procedure linkage it may use the scratch
    registers r11, or x16 and x17.
    """
    if machine == X86_64:  # jmp *slot(%rip), then traps
        return b"\xff\x25" + struct.pack("<i", slot - place - 6) + b"\xcc" * 10
    code = bytearray(struct.pack("<IIII", 0x90000010, 0xF9400211, 0xD61F0220, 0xD4200000))
    _adr_page(code, 0, slot - (place & ~0xFFF), 0)  # adrp x16, slot: place counts by its page only
    _low12(8)(code, 4, slot, 0)  # ldr x17, [x16, slot's low bits]; br x17; brk
    return bytes(code)
