"""The messages between supervisor and agent, and between `sandbox exec` and supervisor.

A byte stream without beginning or end (a virtio-serial port outlives both its users) carries
frames:

    magic 4 | version 1 | kind 1 | flags 2 | session 4 | stream 4 | length 4 | crc32 4 | payload

in network byte order; the checksum covers the header before it and the payload.

*Sessions.* An agent that starts sends HELLO with session 0. The supervisor answers with a HELLO
that opens a session under a random number; a supervisor that starts sends such a HELLO first of
all. The agent answers it with a HELLO of its own. From then on both ignore frames of any other
session, so bytes that an earlier life of either end left in the pipe do no harm. The supervisor's
HELLO brings entropy, with which the agent reseeds the guest's random numbers before it answers.

*Garbage.* A decoder that meets anything but a whole, sound frame moves on by one byte and looks for
the next frame. An end that died may have left the beginning of a frame. So a HELLO is preceded by
as many zero bytes as a frame can have, and can't be taken for a part of that frame.

*Streams.* A REQUEST opens a stream, and a REPLY or ERROR ends it. In between, the stream of a
process carries STDIN, STDOUT and STDERR (an empty one is the end of file), SIGNAL, and for a
terminal RESIZE. The receiver of such data returns CREDIT for what it has passed on. The sender
never has more than WINDOW bytes of a channel without credit, so no reader, however slow, makes the
other end hold more than that. An empty STDOUT or STDERR to the agent means that its reader has
gone. A process of a container exists when STARTED comes, which may be after its first output. OOM
means that the guest's kernel has killed processes of the container because memory was used up.
EXITED means that a further process of a container has ended, and has left others that may still
write to its outputs. It has the content of the REPLY, which comes when they can't write any more,
or when more than MAX_LINGERING such streams are open: the oldest one ends.

The stream of a resolver carries a question in each STDOUT, an answer in each STDIN. A forwarded
connection has a stream with STDIN and STDOUT, of which the agent sends at most FORWARD_WINDOW bytes
without credit. A follower of the guest's listeners gets all of them, as JSON, in each STDOUT.

A socket of the host has streams for its counterpart in the guest. Each waits for a connection of a
program in the guest, begins with STARTED, which says who that is (`uid`, `gid`, `groups`), and goes
on as that of a forwarded connection. An empty STDOUT to the agent says that nobody will read what
the program writes, an empty STDERR from it that the program reads nothing more. The counterpart of
a socket for datagrams has one stream, on which each STDOUT message is a datagram with its sender;
the datagram counts for DATAGRAM_COST bytes more than it has.

*Bounds.* A payload has at most MAX_PAYLOAD bytes; an agent serves at most MAX_STREAMS streams. A
message has as many frames as it needs (flag MORE), between which frames of other streams may come.
It has at most MAX_MESSAGE bytes, a REQUEST at most MAX_REQUEST: only the host makes requests, and
what comes from a guest stays small. Each end has at most one message of several frames in progress,
so its receiver holds only the parts of one, whatever the other end does.
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
"""Where the guest mounts the files of the host, and the name of their device."""
MIRRORS = "/run/tapwright/mirrors"
"""Where the guest has copies of some of them, each at its place in the share."""
SOCKETS = "/run/tapwright/sockets"
"""Where the guest has sockets that stand for those of the host, each by its number."""
STREAM, DATAGRAM = "stream", "datagram"
"""The kinds of those sockets."""


def place_of(path: str) -> str:
    """Return the place, CONTAINER/NAME, to which a path in the share leads."""
    return "/".join(path.split("/")[:2])


MAX_PAYLOAD = 32 * 1024
MAX_MESSAGE = 1024 * 1024
MAX_REQUEST = 16 * 1024 * 1024
"""The configuration of a container may have 8 MiB; the rest is for what is added to it."""
MAX_STREAMS = 384
WINDOW = 256 * 1024
FORWARD_WINDOW = 64 * 1024
"""The window of a connection; there may be many more connections than processes."""
DATAGRAM_COST = 1024
"""So that datagrams without content are bounded by the window, too."""
TCP_STATES = (
    *("established", "syn_sent", "syn_recv", "fin_wait1", "fin_wait2", "time_wait", "close"),
    *("close_wait", "last_ack", "listen", "closing"),
)
"""Of sockets, in the order of the kernel's numbers from 1 (include/net/tcp_states.h)."""
MAX_LISTENERS = 256
MAX_LINGERING = 64

HELLO, REQUEST, REPLY, ERROR, STDIN, STDOUT, STDERR, SIGNAL, CREDIT, CANCEL = range(1, 11)
STARTED, RESIZE, OOM, EXITED = range(11, 15)
_LAST_KIND = EXITED
MORE = 1  # flag: the message goes on in the next frame of the stream

_ENTROPY_BYTES = 64
_INFINITY = float("inf")
_MAGIC = b"TWRT"
_HEADER = struct.Struct("!4sBBHIIII")
_CHECKED = struct.Struct("!4sBBHIII")
_CREDIT = struct.Struct("!BI")
_SIZE = struct.Struct("!HH")
_QUERY = struct.Struct("!H?")
_SENDER = struct.Struct("!II")
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
    """Return the bytes of a frame. Raises ProtocolError if its payload is too long."""
    if len(frame.payload) > MAX_PAYLOAD:
        raise ProtocolError(f"a payload of {len(frame.payload)} bytes")
    checked = _CHECKED.pack(
        *(_MAGIC, VERSION, frame.kind, frame.flags),
        *(frame.session, frame.stream, len(frame.payload)),
    )
    crc = zlib.crc32(frame.payload, zlib.crc32(checked))
    return checked + struct.pack("!I", crc) + frame.payload


def hello(session: int, facts: dict[str, Any], after_whole: bool = False) -> bytes:
    """Return a HELLO that is understood whatever was sent before it. It is shorter `after_whole`
    frames, or after nothing."""
    frame = encode(Frame(HELLO, session, 0, json.dumps(facts).encode()))
    return frame if after_whole else PREAMBLE + frame


def opening(after_whole: bool = True) -> tuple[int, bytes]:
    """Return a new session's number, and the supervisor's HELLO that opens it."""
    session = (int.from_bytes(os.urandom(4)) >> 1) + 1
    return session, hello(session, {"entropy": os.urandom(_ENTROPY_BYTES).hex()}, after_whole)


def message(kind: int, session: int, stream: int, content: Any) -> bytes:
    """Return the frames of a JSON message. Raises ProtocolError if it is too long."""
    return b"".join(frames(kind, session, stream, written(kind, content)))


def written(kind: int, content: Any) -> bytes:
    """Return the encoded content of a message. Raises ProtocolError if it is too long."""
    # Not escaped, because escapes can be three times as long; half a surrogate pair is JSON, too.
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    data = text.encode(errors="surrogatepass")
    most = MAX_REQUEST if kind == REQUEST else MAX_MESSAGE
    if len(data) > most:
        raise ProtocolError(f"a message of {len(data)} bytes, more than {most}")
    return data


def frames(kind: int, session: int, stream: int, data: bytes) -> Iterator[bytes]:
    for start in range(0, max(len(data), 1), MAX_PAYLOAD):
        flags = MORE if start + MAX_PAYLOAD < len(data) else 0
        part = data[start : start + MAX_PAYLOAD]
        yield encode(Frame(kind, session, stream, part, flags))


def credit(channel: int, count: int) -> bytes:
    """Return the payload of a CREDIT: `count` bytes of `channel` (STDIN, STDOUT, STDERR) passed
    on."""
    return _CREDIT.pack(channel, count)


def read_credit(payload: bytes) -> tuple[int, int]:
    """Return (channel, count) of a CREDIT frame. Raises ProtocolError."""
    if len(payload) != _CREDIT.size:
        raise ProtocolError("a CREDIT of the wrong length")
    channel, count = _CREDIT.unpack(payload)
    return channel, count


def size(rows: int, columns: int) -> bytes:
    """Return the payload of a RESIZE. Raises ProtocolError for a size that no terminal has."""
    try:
        return _SIZE.pack(rows, columns)
    except struct.error:
        raise ProtocolError(f"a terminal of {rows} rows and {columns} columns") from None


def read_size(payload: bytes) -> tuple[int, int]:
    """Return (rows, columns) of a RESIZE frame. Raises ProtocolError."""
    if len(payload) != _SIZE.size:
        raise ProtocolError("a RESIZE of the wrong length")
    rows, columns = _SIZE.unpack(payload)
    return rows, columns


def query(number: int, by_tcp: bool, text: bytes) -> bytes:
    """Return the payload of a question to a name server, or of the answer with its number. `text`
    is the DNS message (RFC 1035), which goes over TCP or UDP."""
    return _QUERY.pack(number, by_tcp) + text


def read_query(payload: bytes) -> tuple[int, bool, bytes]:
    """Return (number, by_tcp, text) of such a payload. Raises ProtocolError."""
    if len(payload) < _QUERY.size:
        raise ProtocolError("a question of the wrong length")
    number, by_tcp = _QUERY.unpack_from(payload)
    return number, by_tcp, payload[_QUERY.size :]


def datagram(uid: int, gid: int, data: bytes) -> bytes:
    """Return a datagram with its sender, as a message."""
    return _SENDER.pack(uid, gid) + data


def read_datagram(message: bytes | bytearray) -> tuple[int, int, bytes]:
    """Return (uid, gid, data) of such a message. Raises ProtocolError."""
    if len(message) < _SENDER.size:
        raise ProtocolError("a datagram without a sender")
    uid, gid = _SENDER.unpack_from(message)
    return uid, gid, bytes(message[_SENDER.size :])


def read_json(data: bytes | bytearray) -> dict[str, Any]:
    """Return a message's content, which is always an object. Its numbers are finite: Python would
    also read `NaN`, `Infinity` and `1e999`, which no comparison keeps out, and with which no whole
    number can be made. Raises ProtocolError."""
    try:
        content = json.loads(data, parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError):
        raise ProtocolError("a message that is not JSON") from None
    if not isinstance(content, dict):
        raise ProtocolError("a message that is not a JSON object")
    return content


def _finite(text: str) -> float:
    number = float(text)
    if not -_INFINITY < number < _INFINITY:
        raise ValueError(text)
    return number


class Decoder:
    """Finds the frames in a byte stream, and skips everything else. `garbage` counts the skipped
    bytes, `unsound` false frames with a wrong checksum: checking one takes as long as the frame is,
    and a sender could make one byte a part of a thousand."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.garbage = 0
        self.unsound = 0

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take in some bytes; yield the frames that they complete."""
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
    """Joins messages that came in several frames. It holds at most `most` bytes of all streams
    together."""

    def __init__(self, most: int = MAX_MESSAGE) -> None:
        self._most = most
        self._parts: dict[int, bytearray] = {}
        self._held = 0

    def add(self, frame: Frame) -> bytes | bytearray | None:
        """Return the whole message, or None while more is to come. Raises ProtocolError."""
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
