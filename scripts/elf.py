"""Lets an extension module built for a newer glibc or libstdc++ load on this host.

ml-metadata and tensorflow-data-validation are published for x86-64 Linux as `manylinux_2_39`
wheels only. What their extension modules really need beyond glibc 2.34 and GCC 12's libstdc++ is a
handful of symbols that have a stand-in in every older version (see `STAND_INS`). So it is enough to
edit three of the file's dynamic tables:

* `.gnu.version_r`: a version that the host lacks becomes weak, so the loader does not insist on it;
* `.gnu.version`: the symbols bound to such a version become unversioned;
* `.dynsym`: those symbols take the name of their stand-in (a string that `.dynstr` already holds),
  or weak binding.

Nothing moves, so the file's size and all addresses stay as they were. Layouts are those of the
System V ABI (ELF-64, little endian) and of the LSB's chapter on symbol versioning.

This module can go, with its use in environment.py, when both packages publish wheels for a glibc as
old as the oldest supported one (`OLDEST_GLIBC` in host.py: manylinux_2_34 or older), or when the
oldest supported host has glibc 2.39.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

# The C23 variants differ from the old functions only in accepting binary literals ("0b1") in bases
# 0 and 2. __cxa_call_terminate ends the process when an exception leaves a noexcept function, as
# abort() does. None: an anchor that is referenced and never called, so it may stay unresolved.
STAND_INS: Mapping[str, str | None] = {
    "__isoc23_strtol": "strtol",
    "__isoc23_strtoul": "strtoul",
    "__isoc23_strtoll": "strtoll",
    "__isoc23_strtoull": "strtoull",
    "__cxa_call_terminate": "abort",
    "_ZSt21ios_base_library_initv": None,
}

_SHT_DYNSYM = 11
_SHT_GNU_VERDEF = 0x6FFFFFFD
_SHT_GNU_VERNEED = 0x6FFFFFFE
_SHT_GNU_VERSYM = 0x6FFFFFFF
_VER_FLG_WEAK = 2
_VER_NDX_GLOBAL = 1
_VERSYM_VERSION = 0x7FFF  # the top bit hides the symbol; the rest is the version's index
_STB_WEAK = 2
_SYMBOL_BYTES = 24


class ElfError(ValueError):
    """The file is not ELF-64 little endian, or needs something that has no known stand-in."""


class NeededVersion(NamedTuple):
    """One entry of `.gnu.version_r`: a symbol version expected of another library."""

    library: str
    name: str
    number: int
    weak: bool
    flags_at: int  # file offset of vna_flags


class Symbol(NamedTuple):
    """One entry of `.dynsym` with its version."""

    name: str
    version: int
    at: int  # file offset of the entry
    version_at: int  # file offset of its `.gnu.version` entry


class _Section(NamedTuple):
    kind: int
    offset: int
    size: int
    link: int
    info: int


class ElfFile:
    """The dynamic symbol tables of one ELF-64 file, held in memory."""

    def __init__(self, data: bytes) -> None:
        if data[:6] != b"\x7fELF\x02\x01":
            raise ElfError("not a 64-bit little endian ELF file")
        self.data = bytearray(data)
        try:
            self._sections = list(self._read_sections())
        except struct.error as error:
            raise ElfError("the section table lies outside the file") from error

    def needed_versions(self) -> list[NeededVersion]:
        """Versions this file needs of other libraries."""
        section = self._find(_SHT_GNU_VERNEED)
        if section is None:
            return []
        strings = self._sections[section.link].offset
        needed = []
        entry = section.offset
        for _ in range(section.info):
            _, count, file_name, first, following = self._unpack("<HHIII", entry)
            auxiliary = entry + first
            for _ in range(count):
                _, flags, number, name, next_auxiliary = self._unpack("<IHHII", auxiliary)
                needed.append(
                    NeededVersion(
                        library=self._string(strings + file_name),
                        name=self._string(strings + name),
                        number=number & _VERSYM_VERSION,
                        weak=bool(flags & _VER_FLG_WEAK),
                        flags_at=auxiliary + 4,
                    )
                )
                auxiliary += next_auxiliary
            entry += following
        return needed

    def defined_versions(self) -> set[str]:
        """Versions this file offers to others, its own name among them."""
        section = self._find(_SHT_GNU_VERDEF)
        if section is None:
            return set()
        strings = self._sections[section.link].offset
        names = set()
        entry = section.offset
        for _ in range(section.info):
            _, _, _, _, _, auxiliary, following = self._unpack("<HHHHIII", entry)
            (name,) = self._unpack("<I", entry + auxiliary)
            names.add(self._string(strings + name))
            entry += following
        return names

    def symbols(self) -> Iterator[Symbol]:
        """All dynamic symbols, with the version each is bound to."""
        table, versions = self._find(_SHT_DYNSYM), self._find(_SHT_GNU_VERSYM)
        if table is None or versions is None:
            return
        strings = self._sections[table.link].offset
        for number in range(table.size // _SYMBOL_BYTES):
            at, version_at = table.offset + number * _SYMBOL_BYTES, versions.offset + number * 2
            (name,) = self._unpack("<I", at)
            (version,) = self._unpack("<H", version_at)
            yield Symbol(self._string(strings + name), version & _VERSYM_VERSION, at, version_at)

    def adapt(self, offered: Mapping[str, set[str]]) -> list[str]:
        """Edits the tables so that the file loads where only the given versions are offered.

        Args:
            offered: for each library name, the versions that the host's copy defines. A library
                that is not among the keys is taken to offer everything.

        Returns:
            The missing versions, sorted; empty when nothing had to be changed.

        Raises:
            ElfError: a symbol of a missing version has no known stand-in.
        """
        missing = {
            need.number: need
            for need in self.needed_versions()
            if not need.weak and need.library in offered and need.name not in offered[need.library]
        }
        if not missing:
            return []
        for symbol in list(self.symbols()):
            if symbol.version in missing:
                self._replace(symbol, missing[symbol.version])
        for need in missing.values():
            (flags,) = self._unpack("<H", need.flags_at)
            struct.pack_into("<H", self.data, need.flags_at, flags | _VER_FLG_WEAK)
        return sorted(need.name for need in missing.values())

    def _replace(self, symbol: Symbol, need: NeededVersion) -> None:
        if symbol.name not in STAND_INS:
            raise ElfError(
                f"needs {symbol.name} of {need.name}, which {need.library} of this host lacks"
            )
        stand_in = STAND_INS[symbol.name]
        if stand_in is None:
            info_at = symbol.at + 4
            self.data[info_at] = (_STB_WEAK << 4) | (self.data[info_at] & 0xF)
        else:
            struct.pack_into("<I", self.data, symbol.at, self._name_offset(stand_in))
        struct.pack_into("<H", self.data, symbol.version_at, _VER_NDX_GLOBAL)

    def _name_offset(self, name: str) -> int:
        """Offset in `.dynstr` of a string, which may be the tail of a longer one."""
        table = self._find(_SHT_DYNSYM)
        assert table is not None  # symbols() found it
        strings = self._sections[table.link]
        at = self.data.find(name.encode() + b"\0", strings.offset, strings.offset + strings.size)
        if at < 0:
            raise ElfError(f"its string table has no entry that ends in {name!r}")
        return at - strings.offset

    def _read_sections(self) -> Iterator[_Section]:
        (table,) = self._unpack("<Q", 40)
        entry_bytes, count = self._unpack("<HH", 58)
        for number in range(count):
            _, kind, _, _, offset, size, link, info = self._unpack(
                "<IIQQQQII", table + number * entry_bytes
            )
            yield _Section(kind, offset, size, link, info)

    def _find(self, kind: int) -> _Section | None:
        return next((section for section in self._sections if section.kind == kind), None)

    def _unpack(self, layout: str, at: int) -> tuple[int, ...]:
        return struct.unpack_from(layout, self.data, at)

    def _string(self, at: int) -> str:
        return self.data[at : self.data.index(0, at)].decode()


def host_versions() -> dict[str, set[str]]:
    """Symbol versions of the C and C++ libraries that this very process gets from the loader.

    Raises:
        ElfError: a library cannot be loaded, or its file cannot be found.
    """
    offered = {}
    for library in ("libc.so.6", "libstdc++.so.6"):
        try:
            ctypes.CDLL(library)
        except OSError as error:
            raise ElfError(f"this host has no {library}: {error}") from error
        offered[library] = ElfFile(_mapped_file(library).read_bytes()).defined_versions()
    return offered


def adapt_file(path: Path, offered: Mapping[str, set[str]]) -> list[str]:
    """Adapts an extension module, replacing the file in one step.

    The old file may be a hard link into a package cache, so it is never written to.

    Returns:
        The missing versions that were worked around; empty when the file was left alone.
    """
    elf = ElfFile(path.read_bytes())
    missing = elf.adapt(offered)
    if missing:
        replacement = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            replacement.write_bytes(elf.data)
            replacement.chmod(stat.S_IMODE(path.stat().st_mode))
            replacement.replace(path)
        finally:
            replacement.unlink(missing_ok=True)
    return missing


def adapted_versions(path: Path) -> list[str]:
    """Versions that an earlier `adapt_file` made weak in this file."""
    return sorted(need.name for need in ElfFile(path.read_bytes()).needed_versions() if need.weak)


def _mapped_file(library: str) -> Path:
    """The file behind a library that is loaded into this process."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = Path("/" + line.partition("/")[2])
        # It may be mapped under its full name: libstdc++.so.6.0.30.
        if path.name == library or path.name.startswith(f"{library}."):
            return path
    raise ElfError(f"{library} is loaded but its file was not found in /proc/self/maps")
