"""Leaves out what a PNG file holds beside its picture, for files whose text Pillow refuses.

Programs write whole workflows and long colour profiles into PNG files. Pillow refuses a file whose
text or profile is above its limits, although the pixels are sound and need neither.
"""

from __future__ import annotations

import io
from typing import BinaryIO

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_LEFT_OUT = (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"tIME")


def without_text(file: BinaryIO) -> BinaryIO | None:
    """Return a PNG file without its text, colour profile and time; None if there is none to omit.

    Args:
        file: the file, at its first byte. At most its own size is read.
    """
    if file.read(len(_SIGNATURE)) != _SIGNATURE:
        return None
    kept, omitted = io.BytesIO(), False
    kept.write(_SIGNATURE)
    while len(head := file.read(8)) == 8:  # length and kind
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if kind in _LEFT_OUT:
            omitted = True
            file.seek(length + 4, io.SEEK_CUR)  # 4 bytes of checksum
            continue
        kept.write(head)
        kept.write(file.read(length + 4))
        if kind == b"IEND":
            break
    kept.seek(0)
    return kept if omitted else None
