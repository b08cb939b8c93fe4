"""The Perfetto trace, parsed back by the schema: durations, names and flows equal the timeline."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import MICRO
from random_programs import programs

from qcompiler.sim import timing, trace
from qcompiler.sim.isa.base import QUEUES
from qcompiler.sim.schedule import dependencies

pb2 = pytest.importorskip("perfetto.protos.perfetto.trace.perfetto_trace_pb2")


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_parsed_back(data, tmp_path_factory):
    program = data.draw(programs(MICRO))
    timeline = timing.simulate(program)
    path = tmp_path_factory.mktemp("trace") / "t.perfetto"
    trace.save(timeline, path)
    parsed = pb2.Trace()
    parsed.ParseFromString(path.read_bytes())

    names, slices, open_slices = {}, [], {}
    for packet in parsed.packet:
        if packet.HasField("track_descriptor"):
            names[packet.track_descriptor.uuid] = packet.track_descriptor.name
            continue
        event = packet.track_event
        if event.type == event.TYPE_SLICE_BEGIN:
            assert event.track_uuid not in open_slices
            open_slices[event.track_uuid] = (packet.timestamp, event)
        else:
            begin, first = open_slices.pop(event.track_uuid)
            slices.append((names[event.track_uuid], begin, packet.timestamp, first))
    assert not open_slices
    assert [n for n in names.values() if n] == [q.name for q in QUEUES]

    flows = {"out": set(), "in": set()}
    for queue in QUEUES:
        mine = [s for s in slices if s[0] == queue.name]
        # A track never overlaps itself.
        assert all(a[2] <= b[1] for a, b in zip(mine, mine[1:], strict=False))
        work = [s for s in mine if s[3].name != "lead" and not s[3].name.startswith("wait ")]
        expected = [i for i, ins in enumerate(program.instructions) if ins.queue == queue]
        notes = [{a.name: a.int_value or a.string_value for a in s[3].debug_annotations} for s in work]
        for i, (_, begin, end, event), note in zip(expected, work, notes, strict=True):
            assert (begin, end) == (timeline.start[i], timeline.end[i])
            assert event.name == program.instructions[i].mnemonic
            assert note["text"] == program.instructions[i].text()
            assert note["layer"] == program.layers[program.layer_of[i]].name
            flows["out"].update((f, i) for f in event.flow_ids)
            flows["in"].update((f, i) for f in event.terminating_flow_ids)
        busy = sum(a.int_value for s in work for a in s[3].debug_annotations if a.name == "active")
        assert busy == timeline.units[queue]["busy"]

    waits = {(i, source) for i, pairs in enumerate(dependencies(program).waits) for _, source in pairs}
    sources = dict(flows["out"])
    assert len(sources) == len(flows["in"])
    assert {(i, sources[f]) for f, i in flows["in"]} == waits


def test_waits_fill_the_gaps():
    """Without overlap between units, wait, lead and work slices of a track cover it from 0 to its last end."""
    from test_timing import matmul, program_of

    timeline = timing.simulate(program_of(matmul(10, 64, 16), matmul(10, 64, 16, flags=4)))
    parsed = pb2.Trace()
    parsed.ParseFromString(trace.to_bytes(timeline))
    times = [p.timestamp for p in parsed.packet if p.HasField("track_event")]
    assert times == [0, 1, 1, 17, 17, 75, 75, 179]
    begins = [p.track_event.name for p in parsed.packet if p.track_event.name]
    assert begins == ["wait dispatch", "lead", "matmul", "matmul"]
