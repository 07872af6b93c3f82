"""The quickstart on three targets, one of them on a GPU that may be in another machine.

Run:     espalier run quickstart_targets
         espalier run quickstart_targets --only latency   on a machine with a GPU that has the run's folder
Needs:   pip install "espalier[openvino,tensorrt-rtx]"; no download; a GPU for rtx_fp16 alone
Result:  not measured by us
"""

_base_ = "quickstart.py"

name = "quickstart_targets"

targets = dict(
    cpu=dict(runtime="onnxruntime", precision="fp32"),
    openvino_int8=dict(runtime="openvino", precision="int8"),
    rtx_fp16=dict(runtime="tensorrt_rtx", precision="fp16", batch=2, build_only=True),
)
