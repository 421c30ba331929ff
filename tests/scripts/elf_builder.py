"""Builds the smallest shared object that has dynamic symbols with versions."""

import struct
from collections.abc import Mapping

_DYNSYM, _STRTAB, _VERNEED, _VERSYM = 11, 3, 0x6FFFFFFE, 0x6FFFFFFF
_GLOBAL_FUNCTION = 0x12


def shared_object(
    needs: Mapping[str, Mapping[str, list[str]]], *, extra_strings: tuple[str, ...] = ()
) -> bytes:
    """A file that needs, by library and version, some symbols of other libraries.

    Args:
        needs: symbol names by library by version. A version "" is no version at all.
        extra_strings: strings of the table that no symbol uses.
    """
    strings = bytearray(b"\0")

    def offset(text: str) -> int:
        at = len(strings)
        strings.extend(text.encode() + b"\0")
        return at

    symbols, versions = bytearray(24), bytearray(2)
    requirements = bytearray()
    number = 2
    libraries = list(needs.items())
    for library, by_version in libraries:
        named = [version for version in by_version if version]
        last = library == libraries[-1][0]
        size = 16 * (1 + len(named))
        requirements += struct.pack(
            "<HHIII", 1, len(named), offset(library), 16, 0 if last else size
        )
        for version, names in by_version.items():
            if version:
                following = 0 if version == named[-1] else 16
                requirements += struct.pack("<IHHII", 0, 0, number, offset(version), following)
            for name in names:
                symbols += struct.pack("<IBBHQQ", offset(name), _GLOBAL_FUNCTION, 0, 0, 0, 0)
                versions += struct.pack("<H", number if version else 1)
            number += bool(version)
    for text in extra_strings:
        offset(text)

    parts = [
        (_STRTAB, bytes(strings), 0, 0),
        (_DYNSYM, bytes(symbols), 1, 1),
        (_VERSYM, bytes(versions), 2, 0),
        (_VERNEED, bytes(requirements), 1, len(libraries)),
    ]
    content = bytearray(64)
    table = bytearray(64)
    for kind, data, link, info in parts:
        content += bytes(-len(content) % 8)
        table += struct.pack(
            "<IIQQQQIIQQ", 0, kind, 0, 0, len(content), len(data), link, info, 8, 0
        )
        content += data
    content += bytes(-len(content) % 8)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",
        3,
        62,
        1,
        0,
        0,
        len(content),
        0,
        64,
        0,
        0,
        64,
        1 + len(parts),
        0,
    )
    content[:64] = header
    return bytes(content + table)
