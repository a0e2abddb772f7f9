"""What travels between supervisor and agent, and between `sandbox exec` and supervisor.

A byte stream without beginning or end (a virtio-serial port outlives both its users) carries
frames:

    magic 4 | version 1 | kind 1 | flags 2 | session 4 | stream 4 | length 4 | crc32 4 | payload

in network byte order; the checksum covers the header before it and the payload.

*Sessions.* An agent that starts sends HELLO with session 0. The supervisor answers with a HELLO
that opens a session under a random number, and so it does first of all when it is the one that
started; the agent answers it with a HELLO of its own. From then on both ignore frames of any
other session: what an earlier life of either end left in the pipe hurts nobody. The supervisor's
HELLO brings entropy, with which the agent reseeds the guest's random numbers before it answers.

*Garbage.* A decoder that meets anything but a whole, sound frame moves on by one byte and looks
for the next. Where the beginning of a frame may have been left by an end that died, a HELLO is
preceded by as many zero bytes as a frame can be long, so that it can't be swallowed.

*Streams.* A REQUEST opens a stream, and a REPLY or ERROR ends it. In between, the stream of a
process carries STDIN, STDOUT and STDERR (an empty one is the end of file), SIGNAL, and for a
terminal RESIZE. Who receives such data returns CREDIT for what it has passed on; who sends it never
has more than WINDOW bytes of a channel without credit. So no reader, however slow, makes the other
end hold more than that. An empty STDOUT or STDERR to the agent says that nobody reads it any more.
A process of a container is there when STARTED comes, which may be after its first output; OOM says
that the guest's kernel has killed processes of its container for want of memory. The
stream of a resolver carries a question in each STDOUT, an answer in each STDIN. A connection that
is forwarded has a stream with STDIN and STDOUT, of which the agent sends FORWARD_WINDOW bytes at
most without credit; who follows what listens in the guest gets all of it, as JSON, in each STDOUT.

*Bounds.* A payload is at most MAX_PAYLOAD bytes, an agent serves at most MAX_STREAMS streams. A
message goes in as many frames as it takes (flag MORE), between which those of other streams may
come, and is at most MAX_MESSAGE bytes, a REQUEST MAX_REQUEST: only the host makes requests, and
what comes from a guest stays small. Each end has at most one message of several frames under way:
its receiver holds no more than the parts of one, whatever the other end does.
"""

import json
import os
import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

VERSION = 1
PORT_NAME = "org.tapwright.agent.0"
SHARE, SHARE_TAG = "/run/tapwright/share", "tapwright"
"""Where the guest mounts the files of the host, and the name of the device that they come by."""
MIRRORS = "/run/tapwright/mirrors"
"""Where it has copies of some of them, each in the place that it has in the share."""


def place_of(path: str) -> str:
    """The place, CONTAINER/NAME, of what a path in the share leads to."""
    return "/".join(path.split("/")[:2])


MAX_PAYLOAD = 32 * 1024
MAX_MESSAGE = 1024 * 1024
MAX_REQUEST = 16 * 1024 * 1024
"""The configuration of a container, which may have 8 MiB, and what is added to that."""
MAX_STREAMS = 256
WINDOW = 256 * 1024
FORWARD_WINDOW = 64 * 1024
"""Of a connection, of which there may be many more than processes."""
MAX_LISTENERS = 256

HELLO, REQUEST, REPLY, ERROR, STDIN, STDOUT, STDERR, SIGNAL, CREDIT, CANCEL = range(1, 11)
STARTED, RESIZE, OOM = range(11, 14)
_LAST_KIND = OOM
MORE = 1  # flag: the message goes on in the next frame of the stream

_ENTROPY_BYTES = 64
_MAGIC = b"TWRT"
_HEADER = struct.Struct("!4sBBHIIII")
_CHECKED = struct.Struct("!4sBBHIII")
_CREDIT = struct.Struct("!BI")
_SIZE = struct.Struct("!HH")
_QUERY = struct.Struct("!H?")
MAX_QUERY = MAX_PAYLOAD - _QUERY.size
PREAMBLE = bytes(_HEADER.size + MAX_PAYLOAD)


class ProtocolError(Exception):
    """The other end broke a rule of this protocol."""


class Frame(NamedTuple):
    kind: int
    session: int
    stream: int
    payload: bytes = b""
    flags: int = 0


def encode(frame: Frame) -> bytes:
    """The bytes of a frame. Raises ProtocolError when its payload is too long."""
    if len(frame.payload) > MAX_PAYLOAD:
        raise ProtocolError(f"a payload of {len(frame.payload)} bytes")
    checked = _CHECKED.pack(
        *(_MAGIC, VERSION, frame.kind, frame.flags),
        *(frame.session, frame.stream, len(frame.payload)),
    )
    crc = zlib.crc32(frame.payload, zlib.crc32(checked))
    return checked + struct.pack("!I", crc) + frame.payload


def hello(session: int, facts: dict[str, Any], after_whole: bool = False) -> bytes:
    """A HELLO that is understood whatever was sent before it; shorter `after_whole` frames, or
    nothing."""
    frame = encode(Frame(HELLO, session, 0, json.dumps(facts).encode()))
    return frame if after_whole else PREAMBLE + frame


def opening(after_whole: bool = True) -> tuple[int, bytes]:
    """A new session's number, and the supervisor's HELLO that opens it."""
    session = (int.from_bytes(os.urandom(4)) >> 1) + 1
    return session, hello(session, {"entropy": os.urandom(_ENTROPY_BYTES).hex()}, after_whole)


def message(kind: int, session: int, stream: int, content: Any) -> bytes:
    """The frames of a JSON message. Raises ProtocolError when it is too long."""
    return b"".join(frames(kind, session, stream, written(kind, content)))


def written(kind: int, content: Any) -> bytes:
    """The content of a message as it travels. Raises ProtocolError when it is too long."""
    # Not escaped, for that can be three times as long; half a surrogate pair is JSON, too.
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    data = text.encode(errors="surrogatepass")
    most = MAX_REQUEST if kind == REQUEST else MAX_MESSAGE
    if len(data) > most:
        raise ProtocolError(f"a message of {len(data)} bytes, more than {most}")
    return data


def frames(kind: int, session: int, stream: int, data: bytes) -> Iterator[bytes]:
    """The frames of a message, one after the other."""
    for start in range(0, max(len(data), 1), MAX_PAYLOAD):
        flags = MORE if start + MAX_PAYLOAD < len(data) else 0
        part = data[start : start + MAX_PAYLOAD]
        yield encode(Frame(kind, session, stream, part, flags))


def credit(channel: int, count: int) -> bytes:
    """The payload of a CREDIT: `count` bytes of `channel` (STDIN, STDOUT, STDERR) passed on."""
    return _CREDIT.pack(channel, count)


def read_credit(payload: bytes) -> tuple[int, int]:
    """(channel, count) of a CREDIT frame. Raises ProtocolError."""
    if len(payload) != _CREDIT.size:
        raise ProtocolError("a CREDIT of the wrong length")
    channel, count = _CREDIT.unpack(payload)
    return channel, count


def size(rows: int, columns: int) -> bytes:
    """The payload of a RESIZE. Raises ProtocolError for what no terminal has."""
    try:
        return _SIZE.pack(rows, columns)
    except struct.error:
        raise ProtocolError(f"a terminal of {rows} rows and {columns} columns") from None


def read_size(payload: bytes) -> tuple[int, int]:
    """(rows, columns) of a RESIZE frame. Raises ProtocolError."""
    if len(payload) != _SIZE.size:
        raise ProtocolError("a RESIZE of the wrong length")
    rows, columns = _SIZE.unpack(payload)
    return rows, columns


def query(number: int, by_tcp: bool, text: bytes) -> bytes:
    """The payload of a question to a name server, or of the answer with its number; `text` is the
    DNS message (RFC 1035), which goes over TCP or UDP."""
    return _QUERY.pack(number, by_tcp) + text


def read_query(payload: bytes) -> tuple[int, bool, bytes]:
    """(number, by_tcp, text) of such a payload. Raises ProtocolError."""
    if len(payload) < _QUERY.size:
        raise ProtocolError("a question of the wrong length")
    number, by_tcp = _QUERY.unpack_from(payload)
    return number, by_tcp, payload[_QUERY.size :]


def read_json(data: bytes | bytearray) -> dict[str, Any]:
    """A message's content, which is always an object. Raises ProtocolError."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        raise ProtocolError("a message that is not JSON") from None
    if not isinstance(content, dict):
        raise ProtocolError("a message that is not a JSON object")
    return content


class Decoder:
    """Finds the frames in a byte stream, and steps over all else. `garbage` counts the bytes
    stepped over, `unsound` what looked like a frame and had another checksum: to find that out
    takes as long as a frame is, and a sender can have a byte taken for part of a thousand."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.garbage = 0
        self.unsound = 0

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take in some bytes, give out the frames that they complete."""
        buffer = self._buffer
        buffer += data
        position = 0
        while True:
            start = buffer.find(_MAGIC, position)
            if start < 0:
                # The end may be the beginning of a magic.
                start = max(position, len(buffer) - len(_MAGIC) + 1)
            self.garbage += start - position
            position = start
            if len(buffer) - position < _HEADER.size:
                break
            _, version, kind, flags, session, stream, length, crc = _HEADER.unpack_from(
                buffer, position
            )
            if version != VERSION or not HELLO <= kind <= _LAST_KIND or length > MAX_PAYLOAD:
                self.garbage += 1
                position += 1
                continue
            body = position + _HEADER.size
            if len(buffer) - body < length:
                break
            payload = bytes(buffer[body : body + length])
            if zlib.crc32(payload, zlib.crc32(buffer[position : body - 4])) != crc:
                self.garbage += 1
                self.unsound += 1
                position += 1
                continue
            position = body + length
            yield Frame(kind, session, stream, payload, flags)
        del buffer[:position]


class Assembler:
    """Puts the messages of streams together that came in several frames; it holds `most` bytes of
    them at most, of all together."""

    def __init__(self, most: int = MAX_MESSAGE) -> None:
        self._most = most
        self._parts: dict[int, bytearray] = {}
        self._held = 0

    def add(self, frame: Frame) -> bytes | bytearray | None:
        """The whole message, or None while more is to come. Raises ProtocolError."""
        if not frame.flags & MORE and frame.stream not in self._parts:
            return frame.payload
        if self._held + len(frame.payload) > self._most or len(self._parts) > MAX_STREAMS:
            self.forget(frame.stream)
            raise ProtocolError("a message without end")
        part = self._parts.setdefault(frame.stream, bytearray())
        part += frame.payload
        self._held += len(frame.payload)
        if frame.flags & MORE:
            return None
        self.forget(frame.stream)
        return part

    def forget(self, stream: int) -> None:
        self._held -= len(self._parts.pop(stream, b""))
