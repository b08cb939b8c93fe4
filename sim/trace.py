"""A timeline as a Perfetto trace: one track a unit, a slice an instruction, token waits as flows.

Open the file in https://ui.perfetto.dev. An instruction's slice is the time it occupies its unit (start to end; its
argument `active` says how many cycles of that work), `wait` and `lead` slices fill the gaps. One cycle is shown as
one nanosecond, whatever the clock, so that every duration is exact.
Needs the `perfetto` package (protobuf encoder of the trace format).
"""

from __future__ import annotations

from pathlib import Path

from qcompiler.sim.errors import TargetError
from qcompiler.sim.isa.base import QUEUES, Queue
from qcompiler.sim.schedule import dependencies
from qcompiler.sim.timing import Bound, Timeline

SEQUENCE = 1
MAX_NAME = 200


def to_bytes(timeline: Timeline) -> bytes:
    """The serialised trace. Raises TargetError without the `perfetto` package."""
    try:
        from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import TrackEvent
        from perfetto.trace_builder.proto_builder import TraceProtoBuilder
    except ImportError:
        raise TargetError("a Perfetto trace needs the package 'perfetto': pip install perfetto") from None

    t, program = timeline, timeline.program
    builder = TraceProtoBuilder()
    process = builder.add_packet()
    process.track_descriptor.uuid = 1
    process.track_descriptor.process.pid = 1
    process.track_descriptor.process.process_name = f"{program.name[:MAX_NAME]} on {t.machine.name}, cycles"
    for queue in QUEUES:
        track = builder.add_packet()
        track.track_descriptor.uuid = _track(queue)
        track.track_descriptor.parent_uuid = 1
        track.track_descriptor.name = queue.name

    def event(kind: int, queue: Queue, cycle: int, name: str = "", **annotations: int | str):  # type: ignore[no-untyped-def]
        packet = builder.add_packet()
        packet.timestamp = cycle
        packet.trusted_packet_sequence_id = SEQUENCE
        packet.track_event.type = kind
        packet.track_event.track_uuid = _track(queue)
        if name:
            packet.track_event.name = name
        for key, value in annotations.items():
            note = packet.track_event.debug_annotations.add()
            note.name = key
            if isinstance(value, str):
                note.string_value = value
            else:
                note.int_value = value
        return packet.track_event

    begin, close = TrackEvent.TYPE_SLICE_BEGIN, TrackEvent.TYPE_SLICE_END
    waits = dependencies(program).waits
    consumed: dict[int, list[int]] = {}
    for i, pairs in enumerate(waits):
        for token, source in pairs:
            consumed.setdefault(source, []).append(_flow(i, token))
    issue, start, end, bound = (getattr(t, n).tolist() for n in ("issue", "start", "end", "bound"))
    active = t.active.tolist()
    free = dict.fromkeys(QUEUES, 0)
    for queue in QUEUES:
        # Packets of one track in order of time; the viewer nests by it.
        for i, ins in enumerate(program.instructions):
            if ins.queue != queue:
                continue
            issued = max(issue[i], free[queue])
            for name, low, high in ((f"wait {Bound(bound[i]).name}", free[queue], issued), ("lead", issued, start[i])):
                if high > low:
                    event(begin, queue, low, name)
                    event(close, queue, high)
            layer = program.layers[program.layer_of[i]].name
            slice_ = event(
                begin, queue, start[i], ins.mnemonic,
                layer=layer, index=i, cycles=end[i] - start[i], active=active[i], text=ins.text(),
            )  # fmt: skip
            slice_.flow_ids.extend(consumed.get(i, ()))
            slice_.terminating_flow_ids.extend(_flow(i, token) for token, _ in waits[i])
            event(close, queue, end[i])
            free[queue] = end[i]
    return bytes(builder.serialize())


def save(timeline: Timeline, path: str | Path) -> None:
    """Write the trace to a file."""
    Path(path).write_bytes(to_bytes(timeline))


def _track(queue: Queue) -> int:
    return 10 + int(queue)


def _flow(waiting: int, token: int) -> int:
    """A flow's id: the waiting instruction and the token it takes."""
    return waiting << 5 | token
