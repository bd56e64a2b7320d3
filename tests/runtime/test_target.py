"""Targets: features decide, names do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusile import target
from fusile.errors import UsageError

SKYLAKE_SERVER = (
    "fpu sse sse2 pni ssse3 cx16 sse4_1 sse4_2 movbe popcnt avx f16c fma lahf_lm abm bmi1 avx2 bmi2 "
    "avx512f avx512dq avx512cd avx512bw avx512vl"
)


def cpuinfo(*flags: str) -> str:
    return "\n".join(
        f"processor : {i}\nmodel name : whatever\nflags\t\t: {line}\n" for i, line in enumerate(flags)
    )


def spec(flags: str) -> target.TargetSpec:
    features = target._cpuinfo_features(cpuinfo(flags), target.X86_64)
    assert features is not None
    return target._spec("x86_64-unknown-linux-gnu", features, {})


def test_features_make_the_facts() -> None:
    wide = spec(SKYLAKE_SERVER)
    assert (wide.cpu, wide.vector_bytes, wide.vector_registers, wide.has_fma) == ("x86-64-v4", 64, 32, True)
    middle = spec(SKYLAKE_SERVER.partition(" avx512f")[0])
    assert (middle.cpu, middle.vector_bytes, middle.vector_registers, middle.has_fma) == (
        "x86-64-v3",
        32,
        16,
        True,
    )
    old = spec("fpu sse sse2")
    assert (old.cpu, old.vector_bytes, old.vector_registers, old.has_fma) == ("x86-64", 16, 16, False)


def test_code_must_run_on_every_core() -> None:
    features = target._cpuinfo_features(cpuinfo("avx avx2 fma", "avx"), target.X86_64)
    assert features == {"avx"}


def test_cpuinfo_that_says_nothing_is_not_believed() -> None:
    assert target._cpuinfo_features("processor : 0\n", target.X86_64) is None


def test_arm_features_have_their_own_line() -> None:
    text = "processor : 0\nFeatures : fp asimd asimddp atomics bf16\n"
    features = target._cpuinfo_features(text, target.AARCH64)
    assert features == {"fp-armv8", "neon", "dotprod", "lse", "bf16"}


def test_the_host_agrees_with_llvm() -> None:
    found = set(target.host().features)
    assert found == set(target._llvm_features()) & found
    assert target._llvm_features() - found == set()


def test_wide_vectors_are_asked_for_against_the_tuning_model() -> None:
    assert "-prefer-256-bit" in spec(SKYLAKE_SERVER).feature_text


def test_cpus_by_name() -> None:
    assert target.for_cpu("native") == target.host()
    assert target.for_cpu("x86-64-v3", "x86_64-unknown-linux-gnu").has("fma", "avx2")
    arm = target.for_cpu("armv8-a", "aarch64-unknown-linux-gnu")
    assert (arm.arch, arm.vector_registers, arm.has_fma, arm.vector_bytes) == ("aarch64", 32, True, 16)
    assert target.for_cpu("native", "aarch64-unknown-linux-gnu") == arm or target.host().arch == "aarch64"


def test_cpus_by_their_features() -> None:
    def made(name: str) -> target.TargetSpec:
        return target.for_cpu(name, "x86_64-unknown-linux-gnu")

    assert made("x86-64").features == ()
    assert made("avx2,fma").has("avx", "avx2", "fma", "sse4.2")
    assert not made("avx2,fma").has("avx512f")
    assert made("avx2,bmi,bmi2,f16c,fma,lzcnt,movbe") == made("x86-64-v3")
    assert made("avx512vnni").vector_bytes == 64
    assert made("x86-64-v3,avxvnni").features == tuple(sorted({*made("x86-64-v3").features, "avxvnni"}))
    assert target.for_cpu("dotprod", "aarch64-unknown-linux-gnu").has("neon", "dotprod")
    with pytest.raises(UsageError, match="'avx9' is no CPU"):
        made("avx2,avx9")


@pytest.mark.parametrize(
    ("name", "triple", "says"),
    [
        ("rocketlake", "x86_64-unknown-linux-gnu", "x86-64-v4"),
        ("x86-64-v3", "aarch64-unknown-linux-gnu", "armv8-a"),
        ("generic", "riscv64-unknown-linux-gnu", "aarch64"),
    ],
)
def test_other_names_are_refused_with_those_that_work(name: str, triple: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        target.for_cpu(name, triple)


def test_caches_come_from_sysfs(tmp_path: Path) -> None:
    for number, (level, kind, size) in enumerate(
        [("1", "Data", "48K"), ("1", "Instruction", "32K"), ("2", "Unified", "2M"), ("3", "Unified", "32M")]
    ):
        index = tmp_path / f"index{number}"
        index.mkdir()
        for name, text in (("level", level), ("type", kind), ("size", size), ("coherency_line_size", "64")):
            (index / name).write_text(text + "\n")
    assert target._sysfs_caches(tmp_path) == {"l1_bytes": 48 << 10, "l2_bytes": 2 << 20, "cache_line": 64}
    assert target._sysfs_caches(tmp_path / "absent") == {}


def test_the_key_tells_targets_apart() -> None:
    keys = {
        target.for_cpu(name, "x86_64-unknown-linux-gnu").key for name in ("x86-64", "x86-64-v2", "x86-64-v3")
    }
    assert len(keys) == 3
