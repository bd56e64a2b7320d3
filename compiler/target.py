"""What machine code is made for: a triple, CPU features, and the few facts about a CPU that schedules ask
for.

Features decide, never the name of a CPU: virtual machines report names that do not match what the CPU can do.
On Linux the host is read from /proc/cpuinfo and sysfs, so that a warm start needs no LLVM; elsewhere llvmlite
is asked.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from fusile.errors import UsageError

LINUX, MACOS, WINDOWS = "linux", "macos", "windows"
X86_64, AARCH64 = "x86_64", "aarch64"

_SYSTEMS = {"linux": LINUX, "darwin": MACOS, "macosx": MACOS, "win32": WINDOWS, "windows": WINDOWS}
_MACHINES = {"x86_64": X86_64, "amd64": X86_64, "aarch64": AARCH64, "arm64": AARCH64}
_TRIPLES = {
    LINUX: "{arch}-unknown-linux-gnu",
    MACOS: "{arch}-apple-macosx-elf",
    WINDOWS: "{arch}-pc-windows-elf",
}

# Linux's names of features in LLVM's spelling. What is not here no code of ours asks for.
_X86_FEATURES = {
    "pni": "sse3", "ssse3": "ssse3", "sse4_1": "sse4.1", "sse4_2": "sse4.2", "popcnt": "popcnt",
    "cx16": "cx16", "lahf_lm": "sahf", "avx": "avx", "f16c": "f16c", "fma": "fma", "avx2": "avx2",
    "bmi1": "bmi", "bmi2": "bmi2", "abm": "lzcnt", "movbe": "movbe",
    "avx512f": "avx512f", "avx512bw": "avx512bw", "avx512cd": "avx512cd", "avx512dq": "avx512dq",
    "avx512vl": "avx512vl", "avx512vbmi": "avx512vbmi", "avx512_vbmi2": "avx512vbmi2",
    "avx512_vnni": "avx512vnni", "avx512_bf16": "avx512bf16", "avx512_fp16": "avx512fp16",
    "avx512_bitalg": "avx512bitalg", "avx512_vpopcntdq": "avx512vpopcntdq",
    "avx_vnni": "avxvnni", "avx_vnni_int8": "avxvnniint8", "avx_ifma": "avxifma",
    "avx_ne_convert": "avxneconvert",
    "amx_tile": "amx-tile", "amx_bf16": "amx-bf16", "amx_int8": "amx-int8", "amx_fp16": "amx-fp16",
}  # fmt: skip
_ARM_FEATURES = {
    "fp": "fp-armv8", "asimd": "neon", "asimdhp": "fullfp16", "asimddp": "dotprod", "asimdfhm": "fp16fml",
    "atomics": "lse", "bf16": "bf16", "i8mm": "i8mm", "sve": "sve", "sve2": "sve2",
}  # fmt: skip

# The levels of the x86-64 psABI: LLVM's name for the tuning of a level, and the features that make it.
_X86_LEVELS = (
    ("x86-64-v4", ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")),
    ("x86-64-v3", ("avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe")),
    ("x86-64-v2", ("cx16", "popcnt", "sahf", "sse3", "sse4.1", "sse4.2", "ssse3")),
)


@dataclass(frozen=True, slots=True)
class TargetSpec:
    """A machine to compile for. `cpu` is LLVM's name of a tuning model; `features` are LLVM's names, sorted,
    each one present.
    """

    triple: str
    cpu: str
    features: tuple[str, ...] = ()
    l1_bytes: int = 32 << 10
    l2_bytes: int = 1 << 20
    cache_line: int = 64

    @property
    def arch(self) -> str:
        """`x86_64` or `aarch64`."""
        return _MACHINES[self.triple.split("-")[0]]

    @property
    def system(self) -> str:
        """`linux`, `macos` or `windows`."""
        return next((name for word, name in _SYSTEMS.items() if word in self.triple), LINUX)

    def has(self, *features: str) -> bool:
        """Whether all of these features (LLVM's names) are there."""
        return all(feature in self.features for feature in features)

    @property
    def vector_bytes(self) -> int:
        """Bytes of the widest vector register."""
        return 64 if self.has("avx512f") else 32 if self.has("avx2") else 16

    @property
    def vector_registers(self) -> int:
        """How many vector registers there are."""
        return 32 if self.arch == AARCH64 or self.has("avx512f") else 16

    @property
    def has_fma(self) -> bool:
        """Whether a fused multiply-add is one instruction."""
        return self.arch == AARCH64 or self.has("fma")

    @property
    def feature_text(self) -> str:
        """The features as LLVM takes them. 512-bit vectors are used where they are there, whatever the tuning
        model would rather.
        """
        words = [f"+{feature}" for feature in self.features]
        return ",".join([*words, "-prefer-256-bit"] if self.arch == X86_64 else words)

    @property
    def key(self) -> str:
        """What compiled code depends on, as one line: cache keys are made of it. Cache sizes steer schedules,
        so they count.
        """
        return (
            f"{self.triple}|{self.cpu}|{self.feature_text}|{self.l1_bytes}|{self.l2_bytes}|{self.cache_line}"
        )


@functools.cache
def host() -> TargetSpec:
    """The machine that this process runs on. Raises UsageError where that is neither x86-64 nor AArch64."""
    arch = _MACHINES.get(platform.machine().lower())
    system = _SYSTEMS.get(sys.platform, LINUX)
    if arch is None:
        raise UsageError(
            f"Native code is made for x86-64 and AArch64, not for {platform.machine()}",
            todo='Use target="numba", or emit a PyTorch or Keras module',
        )
    features = _linux_features(arch) if system == LINUX else None
    if features is None:
        features = _llvm_features()
    caches = _sysfs_caches(Path("/sys/devices/system/cpu/cpu0/cache")) if system == LINUX else {}
    return _spec(_TRIPLES[system].format(arch=arch), features, caches)


def for_cpu(name: str, triple: str | None = None) -> TargetSpec:
    """A target by its CPU: `native`, a level (`x86-64`, `x86-64-v2`, `x86-64-v3`, `x86-64-v4`, `armv8-a`), or
    features with commas (`avx2,fma`); with a triple of its own if given. `native` is this machine, and the
    lowest level of another.

    Raises UsageError for another name, or one that does not fit the triple.
    """
    if name == "native" and triple in (None, host().triple):
        return host()
    triple = triple or host().triple
    arch = _MACHINES.get(triple.split("-")[0])
    if arch is None:
        raise UsageError(
            f"No native code for {triple!r}", todo="Use a triple that begins with x86_64 or aarch64"
        )
    levels = _baselines(arch)
    if name == "native":
        return _spec(triple, next(iter(levels.values())), {})
    known = frozenset((_X86_FEATURES if arch == X86_64 else _ARM_FEATURES).values())
    features: frozenset[str] = frozenset() if arch == X86_64 else levels["armv8-a"]
    for part in name.split(","):
        if part not in levels and part not in known:
            raise UsageError(
                f"{part!r} is no CPU that {triple} code can be made for, and no feature of one",
                todo=f"Use {', '.join(levels)}, or features such as {', '.join(sorted(known)[:3])}",
            )
        features |= levels[part] if part in levels else _with_implied(part, levels)
    return _spec(triple, features, {})


def _with_implied(feature: str, levels: dict[str, frozenset[str]]) -> frozenset[str]:
    """A feature with those that no CPU lacks which has it."""
    implied: frozenset[str] = frozenset()
    if feature.startswith(("avx512", "amx")):
        implied = levels["x86-64-v3"] | {"avx512f"}
    elif feature in ("fma", "f16c") or feature.startswith("avx"):
        implied = levels["x86-64-v2"] | {"avx"}
    return implied | {feature}


def available_cores() -> int:
    """Processors that this process may run on, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def _baselines(arch: str) -> dict[str, frozenset[str]]:
    if arch == AARCH64:
        return {"armv8-a": frozenset({"fp-armv8", "neon"})}
    found: dict[str, frozenset[str]] = {"x86-64": frozenset()}
    so_far: frozenset[str] = frozenset()
    for level, features in reversed(_X86_LEVELS):
        so_far |= frozenset(features) | ({"avx"} if "avx2" in features else set())
        found[level] = so_far
    return found


def _spec(triple: str, features: frozenset[str], caches: dict[str, int]) -> TargetSpec:
    arch = _MACHINES[triple.split("-")[0]]
    cpu = "generic"
    if arch == X86_64:
        baselines = _baselines(arch)
        cpu = next((level for level, _ in _X86_LEVELS if baselines[level] <= features), "x86-64")
    return TargetSpec(triple, cpu, tuple(sorted(features)), **caches)


def _linux_features(arch: str) -> frozenset[str] | None:
    """Features out of /proc/cpuinfo, or None where it is not readable or says nothing."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    return _cpuinfo_features(text, arch)


def _cpuinfo_features(text: str, arch: str) -> frozenset[str] | None:
    """The features that every processor in the text has: where cores differ, code must run on each."""
    label, names = ("flags", _X86_FEATURES) if arch == X86_64 else ("Features", _ARM_FEATURES)
    lines = re.findall(rf"^{label}\s*:(.*)$", text, re.MULTILINE)
    if not lines:
        return None
    common = frozenset.intersection(*(frozenset(line.split()) for line in set(lines)))
    return frozenset(names[word] for word in common if word in names)


def _llvm_features() -> frozenset[str]:
    import llvmlite.binding as llvm

    known = frozenset(_X86_FEATURES.values()) | frozenset(_ARM_FEATURES.values())
    return frozenset(
        name for name, present in llvm.get_host_cpu_features().items() if present and name in known
    )


def _sysfs_caches(folder: Path) -> dict[str, int]:
    """`l1_bytes`, `l2_bytes` and `cache_line` of data caches, as far as sysfs says."""
    found: dict[str, int] = {}
    for index in sorted(folder.glob("index*")):
        try:
            level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
            line = int((index / "coherency_line_size").read_text())
            scale = {"K": 1 << 10, "M": 1 << 20}.get(size[-1], 1)
            count = int(size.rstrip("KM")) * scale
        except (OSError, ValueError, IndexError):
            continue
        if kind in ("Data", "Unified") and level in ("1", "2"):
            found[f"l{level}_bytes"] = count
            found["cache_line"] = max(line, found.get("cache_line", 0))
    return found
