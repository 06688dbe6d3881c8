"""The messages are those of the protocol: what ours write protobuf reads, and the other way round."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2, service_pb2

from torchpar.serve.grpc import messages as m
from torchpar.serve.grpc.wire import Message, WireError

TABLE = {
    "ServerLiveResponse": m.LIVE,
    "ModelReadyRequest": m.NAME,
    "ServerMetadataResponse": m.SERVER_METADATA,
    "ModelMetadataResponse": m.MODEL_METADATA,
    "ModelInferRequest": m.INFER_REQUEST,
    "ModelInferResponse": m.INFER_RESPONSE,
    "ModelStreamInferResponse": m.STREAM_RESPONSE,
    "ModelStatisticsResponse": m.STATISTICS,
    "RepositoryIndexRequest": m.INDEX_REQUEST,
    "RepositoryIndexResponse": m.INDEX,
    "RepositoryModelLoadRequest": m.LOAD_REQUEST,
    "TraceSettingRequest": m.TRACE,
    "LogSettingsRequest": m.LOG,
    "ModelConfigResponse": m.CONFIG,
}

SCALARS: dict[str, st.SearchStrategy[Any]] = {
    "string": st.text(max_size=8),
    "bytes": st.binary(max_size=8),
    "bool": st.booleans(),
    "int32": st.integers(-(2**31), 2**31 - 1),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "uint32": st.integers(0, 2**32 - 1),
    "uint64": st.integers(0, 2**64 - 1),
    "float": st.floats(width=32, allow_nan=False),
    "double": st.floats(allow_nan=False),
    "enum": st.integers(0, 3),
}


def values(message: Message) -> st.SearchStrategy[dict[str, Any]]:
    """Any values of a message. Of a parameter, which is one of several kinds, one."""

    def value(field: Any) -> st.SearchStrategy[Any]:
        if field.many == "map":
            inner = field.message.by_number[2]
            return st.dictionaries(st.text(max_size=4), values(inner.message), min_size=1, max_size=3)
        single = values(field.message) if field.message else SCALARS[field.kind]
        return st.lists(single, min_size=1, max_size=3) if field.many else single

    if message.fields and message.fields[0].name == "bool_param":
        return st.one_of([st.fixed_dictionaries({f.name: value(f)}) for f in message.fields])
    return st.fixed_dictionaries({}, optional={f.name: value(f) for f in message.fields})


def plain(message: Message, decoded: dict[str, Any]) -> dict[str, Any]:
    """Without views, and without what protobuf does not tell from a field that is not there."""
    out: dict[str, Any] = {}
    for field in message.fields:
        if field.name not in decoded:
            continue
        value = decoded[field.name]
        if field.many == "map":
            inner = field.message.by_number[2].message  # type: ignore[union-attr]
            value = {key: plain(inner, each) for key, each in value.items()}
        elif field.message:
            value = [plain(field.message, v) for v in value] if field.many else plain(field.message, value)
        elif field.kind == "bytes":
            value = [bytes(v) for v in value] if field.many else bytes(value)
        oneof = message.fields[0].name == "bool_param"
        if value or oneof or (field.message and not field.many):
            out[field.name] = value
    return out


@pytest.mark.parametrize("name", TABLE)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_protobuf_reads_what_we_write_and_we_read_what_it_writes(name: str, data: st.DataObject) -> None:
    message = TABLE[name]
    sent = data.draw(values(message))
    theirs = getattr(service_pb2, name)()
    theirs.ParseFromString(message.encode(sent))
    back = message.decode(theirs.SerializeToString(deterministic=True))
    assert plain(message, back) == plain(message, sent)


@pytest.mark.parametrize("name", TABLE)
def test_every_field_has_the_protocols_number_and_name(name: str) -> None:
    def compare(message: Message, theirs: Any) -> None:
        for field in message.fields:
            their = theirs.fields_by_number[field.number]
            assert their.name == field.name
            if field.message is not None:
                compare(field.message, their.message_type)
            elif field.kind == "enum":
                known = {value.name: value.number for value in their.enum_type.values}
                assert {k: v for k, v in (field.names or {}).items() if k != "TYPE_BYTES"} == known

    compare(TABLE[name], getattr(service_pb2, name).DESCRIPTOR)


def test_a_configuration_is_what_clients_read() -> None:
    config = {"name": "n", "max_batch_size": 4, "input": [{"name": "x", "data_type": "TYPE_BYTES", "dims": [-1]}]}
    theirs = service_pb2.ModelConfigResponse.FromString(m.CONFIG.encode({"config": config})).config
    assert theirs.input[0].data_type == model_config_pb2.TYPE_STRING
    assert MessageToDict(theirs)["input"] == [{"name": "x", "dataType": "TYPE_STRING", "dims": ["-1"]}]


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_wire_error(data: bytes) -> None:
    for message in TABLE.values():
        try:
            message.decode(data)
        except WireError:
            pass
