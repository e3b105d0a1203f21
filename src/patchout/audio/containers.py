"""Container formats: the length in a sound file's header against its size; chained Ogg; MP3's Xing header."""

import itertools
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

HEAD_BYTES = 4096  # the header of most files, and the first page of an Ogg
OGG_PAGE_BYTES = 65307  # at most
MOST_CHUNKS = 1000  # before the sound
STREAMED_BYTES = 2**31 - 2**16  # or more: in a header that was written to a pipe, before the length was known
BITS_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
MPEG_RATES = (44100, 48000, 32000, 32000)  # Hz; nothing has the last one
FIRST_PAGES = (b"OggS\0\2", b"fLaC\0\0\0\x22", b"fLaC\x80\0\0\x22")
OPUS_RATE = struct.pack("<I", 48000)
PCM = {  # WAV's format tag and bits -> libsndfile's name
    (1, 8): "PCM_U8",
    **{(1, bits): f"PCM_{bits}" for bits in (16, 24, 32)},
    (3, 32): "FLOAT",
    (3, 64): "DOUBLE",
    (6, 8): "ALAW",
    (7, 8): "ULAW",
}
EXTENSIBLE = 0xFFFE  # a format tag: the true one stands in the chunk's extension


@runtime_checkable
class BinaryFile(Protocol):
    """The part of `typing.BinaryIO` that decoding needs; `io.BytesIO` has no more than this."""

    def read(self, size: int, /) -> bytes: ...
    def seek(self, offset: int, whence: int = 0, /) -> object: ...
    def tell(self) -> int: ...


class Header(NamedTuple):
    """Corrections to a file's header, and how to decode it, where libsndfile alone would go wrong."""

    needs_libav: bool = False
    is_chained: bool = False  # or several streams of an Ogg side by side
    patches: tuple[tuple[int, bytes], ...] = ()  # (offset, bytes to read there instead of the file's)
    share: float = 1.0  # bytes of sound that the header promises / those present: above 1 if the file is cut
    is_cut: bool = False  # by an unknown amount
    promised_s: float = 0.0  # by an MP3
    raw_start: int = 0  # offset of samples that libsndfile has to read without the header, to the end
    raw: tuple[tuple[str, Any], ...] = ()  # how: the arguments of SoundFile; () by the header


class _Chunks(NamedTuple):
    """Layout of a chunked format."""

    first: int  # offset of the first chunk
    name_bytes: int
    size_code: str
    align: int
    sound: bytes  # name of the chunk with the sound, or its beginning
    skip: int = 0  # bytes of that chunk before the sound


CHUNKS = {
    **dict.fromkeys((b"RIFF", b"RF64", b"BW64"), _Chunks(12, 4, "<I", 2, b"data")),
    b"RIFX": _Chunks(12, 4, ">I", 2, b"data"),
    b"riff": _Chunks(40, 16, "<Q", 8, b"data"),  # Wave64: sizes count the 24 bytes before the content
    b"FORM": _Chunks(12, 4, ">I", 2, b"SSND", 8),
    b"caff": _Chunks(8, 4, ">Q", 1, b"data", 4),
}


def peek(file: BinaryFile, start: int, size: int) -> bytes:
    """Read up to `size` bytes at an offset."""
    file.seek(max(0, start))
    return file.read(size)


def read_header(file: BinaryFile, size: int) -> Header:
    """Parse the header of a file of `size` bytes; an unknown format gives the defaults of `Header`."""
    head = peek(file, 0, HEAD_BYTES)
    if head[:4] in CHUNKS:
        return _chunked(file, size, head)
    if head[:4] == b".snd":
        stated, present = int.from_bytes(head[8:12], "big"), size - int.from_bytes(head[4:8], "big")
        if stated == 0 and present > 0:
            return Header(patches=((8, b"\xff" * 4),))
        return Header(share=_share(stated, present, STREAMED_BYTES))
    if head[:4] == b"OggS":
        return _ogg(file, size, head)
    if head[:3] == b"ID3" or head[:2] >= b"\xff\xe0":
        return Header(needs_libav=True, promised_s=_xing_s(file, head))
    return Header()


def _share(stated: int, present: int, streamed: int) -> float:
    return stated / present if 0 < present < stated < streamed else 1.0


# ---- chunks: WAV, RF64, Wave64, AIFF, CAF


def _chunked(file: BinaryFile, size: int, head: bytes) -> Header:
    layout, kind = CHUNKS[head[:4]], head[:4]
    if head[8:12] == b"AVI ":
        return Header(is_cut=int.from_bytes(head[4:8], "little") + 8 > size)
    chunks = [*_walk(file, size, layout, layout.first)]
    if not chunks or not chunks[-1][0].startswith(layout.sound):
        return Header()
    _, start, stated = chunks[-1]
    present = size - start
    is_long = kind in (b"RF64", b"BW64") and chunks[0][0] == b"ds64" and stated == 2**32 - 1
    if is_long:
        sizes = chunks[0][1]  # of the file and of the sound, 64 bits each
        stated = int.from_bytes(peek(file, sizes + 8, 8), "little")
        name = ((0, b"RF64"),)  # the same format, and libsndfile does not know BW64
        if stated in (0, 2**64 - 1) and present:  # never filled in
            return Header(patches=(*name, (sizes, struct.pack("<QQQ", size - 8, present, 0))))
        return Header(patches=name, share=_share(stated, present, 2**62))
    if kind in (b"RIFF", b"RIFX") and _is_open(file, size, start, stated, layout):
        is_long = present >= 2**32 - 1  # which libsndfile would end there
        if is_long and (raw := _raw(file, chunks, layout)):
            return Header(raw_start=start, raw=(*raw.items(),))
        return Header(needs_libav=is_long, patches=((start - 4, b"\xff" * 4),))
    if kind == b"FORM" and stated <= layout.skip < present:
        return Header(patches=((start - 4, bytes(4)),))
    streamed = 2**62 if layout.size_code[1] == "Q" else STREAMED_BYTES
    return Header(share=_share(stated - layout.skip, present - layout.skip, streamed))


def _walk(file: BinaryFile, size: int, layout: _Chunks, at: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, start of the content and stated bytes of every chunk from an offset to the sound."""
    head_bytes = layout.name_bytes + struct.calcsize(layout.size_code)
    for _ in range(MOST_CHUNKS):
        head = peek(file, at, head_bytes)
        if at >= size or len(head) < head_bytes:
            return
        (stated,) = struct.unpack(layout.size_code, head[layout.name_bytes :])
        stated = max(0, stated - head_bytes) if layout.name_bytes == 16 else stated
        yield head[: layout.name_bytes], at + head_bytes, stated
        if head.startswith(layout.sound):
            return
        at += head_bytes + stated + -stated % layout.align


def _is_open(file: BinaryFile, size: int, start: int, stated: int, layout: _Chunks) -> bool:
    """Whether a WAV's size was never filled in, or lost its upper bits: no valid chunks follow."""
    present = size - start
    if not present or (stated and present < 2**32):
        return False
    following = [*_walk(file, size, layout, start + stated + stated % 2)]
    names = b"".join(name for name, _, _ in following)
    ends = not following or sum(following[-1][1:]) not in (size, size - 1)
    return ends or not (names.isascii() and names.decode().isprintable())


def _raw(file: BinaryFile, chunks: Sequence[tuple[bytes, int, int]], layout: _Chunks) -> dict[str, Any]:
    """How to read the samples of a WAV of more than 4 GB, which 32 bits cannot count; {} if compressed."""
    start = next((start for name, start, _ in chunks if name == b"fmt "), 0)
    form, order = peek(file, start, 26) if start else b"", layout.size_code[0]
    if len(form) < 16:
        return {}
    tag, channels, rate, _, frame_bytes, _ = struct.unpack(f"{order}HHIIHH", form[:16])
    if tag == EXTENSIBLE and len(form) == 26:
        (tag,) = struct.unpack(f"{order}H", form[24:])
    subtype = PCM.get((tag, 8 * frame_bytes // channels if channels else 0))
    if not subtype or not rate:
        return {}
    endian = "LITTLE" if order == "<" else "BIG"
    return {"format": "RAW", "subtype": subtype, "samplerate": rate, "channels": channels, "endian": endian}


# ---- Ogg


def _ogg(file: BinaryFile, size: int, head: bytes) -> Header:
    tail = peek(file, size - OGG_PAGE_BYTES, OGG_PAGE_BYTES)
    last = tail[max(0, tail.rfind(b"OggS")) :]
    is_whole = last[:4] == b"OggS" and len(last) >= _page_bytes(last) and bool(last[5] & 4)
    is_chained = last[:4] == b"OggS" and head[14:18] != last[14:18]
    return Header(is_chained=is_chained, patches=_at_48_khz(head), is_cut=not is_whole)


def _page_bytes(page: bytes) -> int:
    """Length of the Ogg page at the start of `page`; more than is present if its header is cut."""
    count = page[26] if len(page) > 26 else OGG_PAGE_BYTES
    return 27 + count + sum(page[27 : 27 + count])


def _at_48_khz(head: bytes) -> tuple[tuple[int, bytes], ...]:
    """Patches that make libsndfile decode Opus at 48 kHz, not at the original input's rate in the first page.

    That rate is metadata (RFC 7845, section 5.1); at a lower one all above its half would be lost.
    """
    page = head[: _page_bytes(head)]
    if page[28:36] != b"OpusHead" or page[40:44] == OPUS_RATE or page[22:26] != _checksum(page):
        return ()
    return (22, _checksum(page[:40] + OPUS_RATE + page[44:])), (40, OPUS_RATE)


def _checksum(page: bytes) -> bytes:
    """CRC of an Ogg page (RFC 3533, section 6): zlib's with reversed bits and no inversions."""
    mirrored = (page[:22] + bytes(4) + page[26:]).translate(BITS_REVERSED)
    return struct.pack("<I", int(f"{zlib.crc32(mirrored, 0xFFFFFFFF) ^ 0xFFFFFFFF:032b}"[::-1], 2))


def links(file: BinaryFile, size: int) -> list[tuple[int, int]]:
    """Start and end (bytes) of every link of a chained Ogg; streams that begin together are one link."""
    starts, at, in_heads = list[int](), 0, False
    while at < size:
        page = peek(file, at, 27 + 255)
        if page[:4] != b"OggS":  # damage: the next page
            step = peek(file, at + 1, OGG_PAGE_BYTES).find(b"OggS")
            at += 1 + step if step >= 0 else OGG_PAGE_BYTES - 3
            continue
        is_head = bool(page[5:6] and page[5] & 2)
        if is_head and not in_heads:
            starts.append(at)
        in_heads = is_head
        at += _page_bytes(page)
    return [*itertools.pairwise([*starts, size])] or [(0, size)]


def are_all(file: BinaryFile, pages: Sequence[int]) -> bool:
    """Whether the Ogg pages at these offsets are consecutive: then a jump of the time stamps is no gap."""
    position = file.tell()
    first, last = (int.from_bytes(peek(file, at + 18, 4), "little") for at in (pages[0], pages[-1]))
    file.seek(position)
    return last - first == len(pages) - 1


def next_start(file: BinaryFile, size: int) -> int:
    """Offset of another stream near the position at which a decoder stopped in a FLAC or an Ogg; 0: none."""
    start = max(1, file.tell() - OGG_PAGE_BYTES)
    near = peek(file, start, 2 * OGG_PAGE_BYTES) if start < size else b""
    offsets = [near.find(page) for page in FIRST_PAGES]
    return min((start + offset for offset in offsets if offset >= 0), default=0)


# ---- MPEG


def _xing_s(file: BinaryFile, head: bytes) -> float:
    """Length in seconds by the Xing (Info) header in the first frame of an MP3, 0 without one."""
    tag_bytes = sum((byte & 127) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=False))
    frame = peek(file, 10 + tag_bytes if head.startswith(b"ID3") else 0, 256)
    at = max(frame.find(b"Xing"), frame.find(b"Info"))
    if frame[:1] != b"\xff" or not 0 <= at <= len(frame) - 12 or not frame[at + 7] & 1:
        return 0.0
    rate = MPEG_RATES[frame[2] >> 2 & 3] / {3: 1, 2: 2}.get(frame[1] >> 3 & 3, 4)  # MPEG 1, 2, 2.5
    return int.from_bytes(frame[at + 8 : at + 12], "big") * (1152 if frame[1] & 8 else 576) / rate
