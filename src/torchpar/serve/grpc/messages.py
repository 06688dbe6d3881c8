"""The messages of the inference protocol: their fields' numbers are the protocol's, the text is ours."""

from __future__ import annotations

from torchpar.serve.grpc.wire import Message

NOTHING = Message("")
NAME = Message("1 name string, 2 version string")

LIVE = Message("1 live bool")
READY = Message("1 ready bool")
SERVER_METADATA = Message("1 name string, 2 version string, 3 extensions string*")
_TENSOR = Message("1 name string, 2 datatype string, 3 shape int64*")
MODEL_METADATA = Message(
    "1 name string, 2 versions string*, 3 platform string, 4 inputs Tensor*, 5 outputs Tensor*", Tensor=_TENSOR
)

PARAMETER = Message(
    "1 bool_param bool, 2 int64_param int64, 3 string_param string, 4 double_param double, 5 uint64_param uint64"
)
_PARAMETERS = Message("1 key string, 2 value Parameter", Parameter=PARAMETER)
_CONTENTS = Message(
    "1 bool_contents bool*, 2 int_contents int32*, 3 int64_contents int64*, 4 uint_contents uint32*,"
    "5 uint64_contents uint64*, 6 fp32_contents float*, 7 fp64_contents double*, 8 bytes_contents bytes*"
)
_INPUT = Message(
    "1 name string, 2 datatype string, 3 shape int64*, 4 parameters {Parameters}, 5 contents Contents",
    Parameters=_PARAMETERS,
    Contents=_CONTENTS,
)
_WANTED = Message("1 name string, 2 parameters {Parameters}", Parameters=_PARAMETERS)
INFER_REQUEST = Message(
    "1 model_name string, 2 model_version string, 3 id string, 4 parameters {Parameters}, 5 inputs Input*,"
    "6 outputs Wanted*, 7 raw_input_contents bytes*",
    Parameters=_PARAMETERS,
    Input=_INPUT,
    Wanted=_WANTED,
)
INFER_RESPONSE = Message(
    "1 model_name string, 2 model_version string, 3 id string, 4 parameters {Parameters}, 5 outputs Output*,"
    "6 raw_output_contents bytes*",
    Parameters=_PARAMETERS,
    Output=_INPUT,
)
# Of a request, what its error has too; and an answer that is written already.
INFER_NAMES = Message("1 model_name string, 3 id string")
STREAM_ANSWER = Message("2 infer_response bytes")
STREAM_RESPONSE = Message("1 error_message string, 2 infer_response Response", Response=INFER_RESPONSE)

# BYTES is called TYPE_STRING in a model's configuration.
DATA_TYPES = {
    f"TYPE_{name}": number
    for number, name in enumerate(
        "INVALID BOOL UINT8 UINT16 UINT32 UINT64 INT8 INT16 INT32 INT64 FP16 FP32 FP64 STRING BF16".split()
    )
}
DATA_TYPES["TYPE_BYTES"] = DATA_TYPES["TYPE_STRING"]
_CONFIG_INPUT = Message("1 name string, 2 data_type enum, 4 dims int64*, 8 optional bool", DATA_TYPES)
_CONFIG_OUTPUT = Message("1 name string, 2 data_type enum, 3 dims int64*, 4 label_filename string", DATA_TYPES)
_BATCHING = Message(
    "1 preferred_batch_size int32*, 2 max_queue_delay_microseconds uint64, 3 preserve_ordering bool,"
    "4 priority_levels uint64, 5 default_priority_level uint64"
)
_KINDS = {"KIND_AUTO": 0, "KIND_GPU": 1, "KIND_CPU": 2, "KIND_MODEL": 3}
_INSTANCES = Message("1 name string, 2 count int32, 3 gpus int32*, 4 kind enum", _KINDS)
_TEXT = Message("1 string_value string")
CONFIG = Message(
    "1 config Config",
    Config=Message(
        "1 name string, 2 platform string, 4 max_batch_size int32, 5 input Input*, 6 output Output*,"
        "7 instance_group Instances*, 8 default_model_filename string, 11 dynamic_batching Batching,"
        "14 parameters {Texts}, 17 backend string, 25 runtime string",
        Input=_CONFIG_INPUT,
        Output=_CONFIG_OUTPUT,
        Instances=_INSTANCES,
        Batching=_BATCHING,
        Texts=Message("1 key string, 2 value Text", Text=_TEXT),
    ),
)

_DURATION = Message("1 count uint64, 2 ns uint64")
STATISTICS = Message(
    "1 model_stats Model*",
    Model=Message(
        "1 name string, 2 version string, 3 last_inference uint64, 4 inference_count uint64,"
        "5 execution_count uint64, 6 inference_stats All, 7 batch_stats Batch*",
        All=Message(
            "1 success D, 2 fail D, 3 queue D, 4 compute_input D, 5 compute_infer D, 6 compute_output D,"
            "7 cache_hit D, 8 cache_miss D",
            D=_DURATION,
        ),
        Batch=Message(
            "1 batch_size uint64, 2 compute_input D, 3 compute_infer D, 4 compute_output D", D=_DURATION
        ),
    ),
)

INDEX_REQUEST = Message("1 repository_name string, 2 ready bool")
INDEX = Message(
    "1 models Model*", Model=Message("1 name string, 2 version string, 3 state string, 4 reason string")
)
_REPOSITORY_PARAMETER = Message("1 bool_param bool, 2 int64_param int64, 3 string_param string, 4 bytes_param bytes")
LOAD_REQUEST = Message(
    "1 repository_name string, 2 model_name string, 3 parameters {Parameters}",
    Parameters=Message("1 key string, 2 value Parameter", Parameter=_REPOSITORY_PARAMETER),
)

_SETTING_LIST = Message("1 value string*")
TRACE = Message(
    "1 settings {Settings}, 2 model_name string", Settings=Message("1 key string, 2 value V", V=_SETTING_LIST)
)
_SETTING = Message("1 bool_param bool, 2 uint32_param uint32, 3 string_param string")
LOG = Message("1 settings {Settings}", Settings=Message("1 key string, 2 value V", V=_SETTING))

HEALTH_REQUEST = Message("1 service string")
HEALTH = Message("1 status enum", {"UNKNOWN": 0, "SERVING": 1, "NOT_SERVING": 2, "SERVICE_UNKNOWN": 3})
