"""Extension modules built for newer systems are made to load on older ones, and only there."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elf import (
    ElfError,
    ElfFile,
    adapt_file,
    adapted_versions,
    host_versions,
)
from environment import NEWER_GLIBC_WHEELS
from tests.scripts.elf_builder import shared_object

_NEEDS = {
    "libc.so.6": {
        "GLIBC_2.2.5": ["malloc", "abort"],
        "GLIBC_2.38": ["__isoc23_strtol", "__isoc23_strtoull"],
    },
    "libstdc++.so.6": {
        "GLIBCXX_3.4.32": ["_ZSt21ios_base_library_initv"],
        "CXXABI_1.3.15": ["__cxa_call_terminate"],
        "": ["my_function"],
    },
    "libm.so.6": {"GLIBC_2.29": ["exp"]},
}
_OLD_HOST = {"libc.so.6": {"GLIBC_2.2.5"}, "libstdc++.so.6": {"GLIBCXX_3.4"}}
_NEW_HOST = {
    "libc.so.6": {"GLIBC_2.2.5", "GLIBC_2.38"},
    "libstdc++.so.6": {"GLIBCXX_3.4.32", "CXXABI_1.3.15"},
}


def _bindings(elf: ElfFile) -> dict[str, int]:
    return {symbol.name: elf.data[symbol.at + 4] >> 4 for symbol in elf.symbols() if symbol.name}


def test_an_old_host_gets_stand_ins_for_what_it_lacks() -> None:
    elf = ElfFile(shared_object(_NEEDS))
    assert elf.adapt(_OLD_HOST) == ["CXXABI_1.3.15", "GLIBCXX_3.4.32", "GLIBC_2.38"]
    versions = {need.number: need.name for need in elf.needed_versions()}
    bound = [(symbol.name, versions.get(symbol.version)) for symbol in elf.symbols()][1:]
    assert bound == [
        ("malloc", "GLIBC_2.2.5"),
        ("abort", "GLIBC_2.2.5"),
        ("strtol", None),
        ("strtoull", None),
        ("_ZSt21ios_base_library_initv", None),
        ("abort", None),
        ("my_function", None),
        ("exp", "GLIBC_2.29"),
    ]
    weak, global_ = 2, 1
    assert _bindings(elf)["_ZSt21ios_base_library_initv"] == weak
    assert _bindings(elf)["strtol"] == global_


def test_the_loader_is_told_to_insist_only_on_what_the_host_has() -> None:
    elf = ElfFile(shared_object(_NEEDS))
    elf.adapt(_OLD_HOST)
    assert {need.name: need.weak for need in elf.needed_versions()} == {
        "GLIBC_2.2.5": False,
        "GLIBC_2.38": True,
        "GLIBCXX_3.4.32": True,
        "CXXABI_1.3.15": True,
        "GLIBC_2.29": False,
    }


def test_nothing_is_touched_on_a_new_host(tmp_path: Path) -> None:
    module = tmp_path / "module.so"
    module.write_bytes(shared_object(_NEEDS))
    before = module.stat()
    assert adapt_file(module, _NEW_HOST) == []
    assert module.read_bytes() == shared_object(_NEEDS)
    assert (module.stat().st_ino, module.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_adapting_twice_changes_nothing_more(tmp_path: Path) -> None:
    module = tmp_path / "module.so"
    module.write_bytes(shared_object(_NEEDS))
    lacking = adapt_file(module, _OLD_HOST)
    adapted = module.read_bytes()
    assert adapt_file(module, _OLD_HOST) == []
    assert module.read_bytes() == adapted
    assert adapted_versions(module) == lacking


def test_size_and_mode_stay_and_a_package_cache_keeps_its_copy(tmp_path: Path) -> None:
    cached = tmp_path / "cached.so"
    cached.write_bytes(shared_object(_NEEDS))
    cached.chmod(0o755)
    module = tmp_path / "module.so"
    module.hardlink_to(cached)
    adapt_file(module, _OLD_HOST)
    assert cached.read_bytes() == shared_object(_NEEDS)
    assert module.read_bytes() != cached.read_bytes()
    assert module.stat().st_size == cached.stat().st_size
    assert module.stat().st_mode == cached.stat().st_mode
    assert sorted(tmp_path.iterdir()) == [cached, module]


def test_a_symbol_without_a_stand_in_is_refused_and_the_file_stays(tmp_path: Path) -> None:
    module = tmp_path / "module.so"
    module.write_bytes(shared_object({"libc.so.6": {"GLIBC_2.99": ["fold_space"]}}))
    before = module.read_bytes()
    with pytest.raises(ElfError, match=r"fold_space of GLIBC_2\.99"):
        adapt_file(module, _OLD_HOST)
    assert module.read_bytes() == before


def test_a_stand_in_whose_name_the_file_does_not_hold_is_refused() -> None:
    needs = {"libstdc++.so.6": {"CXXABI_1.3.15": ["__cxa_call_terminate"]}}
    with pytest.raises(ElfError, match="'abort'"):
        ElfFile(shared_object(needs)).adapt(_OLD_HOST)
    held = ElfFile(shared_object(needs, extra_strings=("abort",)))
    assert held.adapt(_OLD_HOST) == ["CXXABI_1.3.15"]


@given(st.binary(max_size=200) | st.integers(0, 500).map(lambda n: shared_object(_NEEDS)[:n]))
def test_a_file_that_is_no_whole_module_is_refused_cleanly(data: bytes) -> None:
    with pytest.raises(ElfError):
        ElfFile(data)


@given(
    st.fixed_dictionaries(
        {
            "libc.so.6": st.sets(st.sampled_from(["GLIBC_2.2.5", "GLIBC_2.38"])),
            "libstdc++.so.6": st.sets(st.sampled_from(["GLIBCXX_3.4.32", "CXXABI_1.3.15"])),
        }
    ).filter(lambda offered: "GLIBC_2.2.5" in offered["libc.so.6"])
)
def test_whatever_a_host_offers_nothing_it_lacks_is_still_demanded(
    offered: dict[str, set[str]],
) -> None:
    elf = ElfFile(shared_object(_NEEDS))
    elf.adapt(offered)
    demanded = {
        need.name for need in elf.needed_versions() if need.library in offered and not need.weak
    }
    assert demanded <= offered["libc.so.6"] | offered["libstdc++.so.6"]
    missing = {need.number for need in elf.needed_versions() if need.weak}
    assert missing.isdisjoint(symbol.version for symbol in elf.symbols())


def test_the_versions_of_this_host_are_read_from_its_libraries() -> None:
    offered = host_versions()
    assert "GLIBC_2.34" in offered["libc.so.6"]
    assert {"GLIBCXX_3.4.29", "CXXABI_1.3.13"} <= offered["libstdc++.so.6"]


@pytest.mark.parametrize("module", NEWER_GLIBC_WHEELS.values())
def test_the_installed_modules_demand_nothing_that_this_host_lacks(module: str) -> None:
    package = find_spec(module.partition("/")[0])
    assert package is not None
    assert package.origin is not None
    path = Path(package.origin).parent.parent / module
    offered = host_versions()
    assert adapt_file(path, offered) == []
    elf = ElfFile(path.read_bytes())
    lacking = {need.name for need in elf.needed_versions() if need.weak}
    assert lacking.isdisjoint(set().union(*offered.values()))
    assert "abort" in {symbol.name for symbol in elf.symbols()}
