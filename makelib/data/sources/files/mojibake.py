"""Text that was encoded twice: UTF-8 that a program read as Latin-1 or Windows-1252 and saved again, "CafÃ©" for "Café".

Such text is valid UTF-8, so no encoding that could be stated would mend it. It is known by runs of letters whose bytes in
Windows-1252 are UTF-8 of plausible letters; both readings of a byte that it leaves undefined are understood.
"""

from __future__ import annotations

import re

#: byte of 128 and more -> its character in Windows-1252, in Latin-1 where that leaves it undefined
_CHARACTERS = {byte: bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in range(0x80, 0x100)}
_BYTES = {chr(byte): byte for byte in range(0x80, 0x100)} | {char: byte for byte, char in _CHARACTERS.items()}
_AFTER = "".join(re.escape(char) for char, byte in _BYTES.items() if byte < 0xC0)
_LEAD = {
    length: "".join(re.escape(_CHARACTERS[byte]) for byte in leads)
    for length, leads in ((2, range(0xC2, 0xE0)), (3, range(0xE0, 0xF0)), (4, range(0xF0, 0xF5)))
}
#: `QUALITÄ®` and `CAFÉ™` are people's
_MARKED = "(?!(?<=[A-Z\u00c0-\u00de]{2})[\u00c0-\u00de][®™])"
_RUN = re.compile(
    f"{_MARKED}(?:" + "|".join(f"[{lead}][{_AFTER}]{{{length - 1}}}" for length, lead in _LEAD.items()) + ")+"
)
#: of letters beyond Latin a run needs two: `×”` is people's, too
_LATIN = re.compile("[\u00a0-\u017f\u2010-\u203a\u20ac\u2122\ufeff\U0001f300-\U0001faff]+")
_OTHER = re.compile(
    "(?:[\u00a0-\u017f\u0370-\u0482\u048a-\u052f\u05d0-\u05ea\u0600-\u06ff\u0900-\u0dff\u0e00-\u0eff\u10a0-\u10ff\u1e00-\u1fff"
    "\u2010-\u203a\u20ac\u2122\u3000-\u30ff\u3400-\u9fff\uac00-\ud7a3\uf900-\ufaff\uff00-\uffef]){2,}"
)


def mended(text: str) -> str:
    """The text with every run that was encoded twice read right; as it came where there is none."""
    return text if text.isascii() else _RUN.sub(_read_right, text)


def _read_right(run: re.Match[str]) -> str:
    try:
        meant = bytes(map(_BYTES.__getitem__, run[0])).decode("utf-8")
    except UnicodeDecodeError:
        return run[0]
    return meant if _LATIN.fullmatch(meant) or _OTHER.fullmatch(meant) else run[0]
