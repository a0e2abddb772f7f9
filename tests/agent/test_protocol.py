"""The frames: whatever is put in comes out, whatever else is in the pipe."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapwright.agent import protocol
from tapwright.agent.protocol import Assembler, Decoder, Frame

pytestmark = pytest.mark.unit

FRAMES = st.builds(
    Frame,
    kind=st.integers(protocol.HELLO, protocol.RESIZE),
    session=st.integers(0, 2**32 - 1),
    stream=st.integers(0, 2**32 - 1),
    payload=st.binary(max_size=300),
    flags=st.sampled_from([0, protocol.MORE]),
)
# Random bytes, and bytes that look like the beginning of a frame.
GARBAGE = st.one_of(st.binary(max_size=60), st.just(b"TWRT"), st.just(b"TWRT\x01\x02"))


def in_pieces(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces, position = [], 0
    for size in sizes:
        pieces.append(data[position : position + size])
        position += size
    return [*pieces, data[position:]]


@given(st.lists(FRAMES, max_size=8), st.lists(st.integers(1, 64), max_size=40))
def test_frames_arrive_however_they_are_cut(frames: list[Frame], sizes: list[int]) -> None:
    decoder = Decoder()
    found: list[Frame] = []
    for piece in in_pieces(b"".join(map(protocol.encode, frames)), sizes):
        found.extend(decoder.feed(piece))
    assert found == frames
    assert decoder.garbage == 0


@given(st.lists(st.tuples(GARBAGE, FRAMES), max_size=6))
def test_frames_arrive_between_garbage(parts: list[tuple[bytes, Frame]]) -> None:
    data = b"".join(garbage + protocol.encode(frame) for garbage, frame in parts)
    # A HELLO flushes what looks like a frame that has not come to its end.
    found = list(Decoder().feed(data + protocol.hello(1, {})))
    assert found[:-1] == [frame for _, frame in parts]
    assert found[-1].kind == protocol.HELLO


@given(FRAMES, st.data())
def test_half_a_frame_does_not_swallow_a_hello(frame: Frame, data: st.DataObject) -> None:
    whole = protocol.encode(frame)
    cut = data.draw(st.integers(0, len(whole) - 1))
    *before, found = Decoder().feed(whole[:cut] + protocol.hello(7, {"a": 1}))
    assert (found.kind, found.session) == (protocol.HELLO, 7)
    # The zeros before a HELLO are the rest of a frame that ends with zeros.
    assert before == ([] if any(whole[cut:]) else [frame])


@given(FRAMES, st.data())
def test_a_changed_bit_is_noticed(frame: Frame, data: st.DataObject) -> None:
    whole = bytearray(protocol.encode(frame))
    position = data.draw(st.integers(0, len(whole) * 8 - 1))
    whole[position // 8] ^= 1 << position % 8
    assert frame not in Decoder().feed(bytes(whole) + protocol.PREAMBLE)


@given(st.binary(max_size=5000))
def test_garbage_is_bounded(data: bytes) -> None:
    decoder = Decoder()
    for _ in range(50):
        list(decoder.feed(data))
    assert len(decoder._buffer) <= protocol.MAX_PAYLOAD + 64


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.lists(st.text())))
def test_messages(content: dict[str, object]) -> None:
    assembler = Assembler()
    (frame,) = Decoder().feed(protocol.message(protocol.REPLY, 1, 2, content))
    whole = assembler.add(frame)
    assert whole is not None
    assert protocol.read_json(whole) == content


@given(st.text(st.characters(), max_size=40))
def test_any_string_of_json_arrives(text: str) -> None:
    """Half a surrogate pair, too: JSON allows it, and UTF-8 does not."""
    data = protocol.written(protocol.REPLY, {"text": text})
    assert protocol.read_json(data) == {"text": text}


def test_message_of_many_frames() -> None:
    content = {"text": "x" * 500_000}
    assembler = Assembler()
    parts = [
        assembler.add(frame)
        for frame in Decoder().feed(protocol.message(protocol.REPLY, 1, 2, content))
    ]
    assert parts[:-1] == [None] * (len(parts) - 1)
    assert parts[-1] is not None
    assert protocol.read_json(parts[-1]) == content


def test_bounds() -> None:
    with pytest.raises(protocol.ProtocolError, match="1048600 bytes"):
        protocol.message(protocol.REPLY, 1, 2, "x" * 1_048_598)
    with pytest.raises(protocol.ProtocolError):
        protocol.encode(Frame(protocol.STDIN, 1, 2, bytes(protocol.MAX_PAYLOAD + 1)))
    assembler = Assembler()
    endless = Frame(protocol.REPLY, 1, 2, bytes(protocol.MAX_PAYLOAD), protocol.MORE)
    for _ in range(protocol.MAX_MESSAGE // protocol.MAX_PAYLOAD):
        assert assembler.add(endless) is None
    with pytest.raises(protocol.ProtocolError, match="without end"):
        assembler.add(endless)


def test_requests_may_be_larger() -> None:
    most = protocol.MAX_REQUEST - len('""')
    assert len(protocol.written(protocol.REQUEST, "x" * most)) == protocol.MAX_REQUEST
    for kind, size in ((protocol.REQUEST, most + 1), (protocol.REPLY, protocol.MAX_MESSAGE)):
        with pytest.raises(protocol.ProtocolError, match="more than"):
            protocol.written(kind, "x" * size)


@given(
    st.lists(
        st.tuples(st.integers(1, 5), st.integers(0, 300), st.sampled_from([0, 0, protocol.MORE])),
        max_size=60,
    )
)
def test_parts_of_all_streams_together_are_bounded(sent: list[tuple[int, int, int]]) -> None:
    """Whatever comes: the parts that are held, and what is given out, are no more than that."""
    most = 1000
    assembler = Assembler(most)
    expected: dict[int, bytes] = {}
    for stream, size, flags in sent:
        payload = bytes([stream]) * size
        whole = expected.get(stream, b"") + payload
        try:
            found = assembler.add(Frame(protocol.REPLY, 1, stream, payload, flags))
        except protocol.ProtocolError:
            assert sum(map(len, expected.values())) + size > most
            expected.pop(stream, None)
            continue
        finally:
            held = sum(map(len, assembler._parts.values()))
            assert held == assembler._held <= most
        if flags:
            assert found is None
            expected[stream] = whole
        else:
            assert found == whole
            expected.pop(stream, None)


@pytest.mark.parametrize("data", [b"", b"[]", b"nul", b"\xff", b"[" * 100_000])
def test_what_is_no_message(data: bytes) -> None:
    with pytest.raises(protocol.ProtocolError):
        protocol.read_json(data)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_numbers_are_finite(number: str) -> None:
    assert protocol.read_json(b'{"a": 1e300}') == {"a": 1e300}
    with pytest.raises(protocol.ProtocolError):
        protocol.read_json(f'{{"a": [{number}]}}'.encode())
