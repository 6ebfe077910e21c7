"""Reads what a TensorBoard writer wrote."""

import struct

import pytest


def events(folder):
  """(tag, step, value) of all event files, by the format of their records."""
  pb = pytest.importorskip("tensorboardX.proto.event_pb2")
  out = []
  for path in sorted(folder.glob("events.out.tfevents.*")):
    data, at = path.read_bytes(), 0
    while at < len(data):
      (length,) = struct.unpack_from("<Q", data, at)
      event = pb.Event.FromString(data[at + 12 : at + 12 + length])
      at += length + 16
      out += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
  return out
