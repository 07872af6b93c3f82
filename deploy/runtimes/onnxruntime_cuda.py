"""ONNX Runtime on an NVIDIA GPU: the CUDA execution provider, on torch's stream and buffers."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

from command.errors import WorkError
from deploy.onnx_file import classes_of, input_specs, onnx_from_bytes, output_specs, precision_of, read_onnx
from deploy.runtimes.onnxruntime import onnx_session, onnx_step
from deploy.runtimes.tensorrt import BufferedRunner
from deploy.runtimes.timed_step import CudaBuffers, Step, cuda_step
from deploy.tensors import Arrays, check_inputs

__all__ = ["INSTALL", "CudaOnnxRunner", "has_cuda_provider"]

PROVIDER = "CUDAExecutionProvider"
INSTALL = "pip uninstall -y onnxruntime && pip install onnxruntime-gpu"
"""What to do where ONNX Runtime has no CUDA support."""


class CudaOnnxRunner(BufferedRunner):
    """Runs an ONNX file with ONNX Runtime on the current GPU.

    Args:
        path: The ONNX file, with fixed shapes.

    Raises:
        MissingFileError: If there is no such file.
        RequestError: If it is not an ONNX file, or ONNX Runtime cannot load it.
        WorkError: If the installed ONNX Runtime has no CUDA support, or there is no GPU.
    """

    runtime = "onnxruntime_cuda"
    num_threads: int | None = None

    def __init__(self, path: str | Path) -> None:
        data = read_onnx(path)
        model = onnx_from_bytes(path, data)
        _require_cuda(path)
        import torch

        self.inputs, self.outputs = input_specs(model), output_specs(model)
        self.classes = classes_of(path, model)
        self.precision = precision_of(model)
        self.device = f"cuda:{torch.cuda.current_device()}"
        self.file = Path(path)
        self.file_sha256: str | None = hashlib.sha256(data).hexdigest()
        self._stream = torch.cuda.Stream()
        place = {
            "device_id": torch.cuda.current_device(),
            "user_compute_stream": str(self._stream.cuda_stream),
            "use_tf32": "0",  # fp32 means the same in every runtime
        }
        self._session = onnx_session(path, data, 1, (PROVIDER, place))
        if PROVIDER not in self._session.get_providers():  # it falls back to the CPU with only a log line
            raise WorkError(
                f"{path}: ONNX Runtime cannot load its CUDA provider, got a session on the CPU; install the CUDA and "
                f"cuDNN versions that this onnxruntime-gpu was built for"
            )

    def prepare(self, inputs: Arrays) -> Step:
        """Copy the inputs to the GPU and return a step that copies, computes and fetches."""
        import onnxruntime

        check_inputs(str(self.file), self.inputs, inputs)
        self._buffers = buffers = CudaBuffers(inputs, self.outputs)
        binding = self._binding(buffers)
        options = onnxruntime.RunOptions()
        # events mark the end; waiting on the host would be included in the time
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        launch = onnx_step(self.file, partial(self._session.run_with_iobinding, binding, options))
        self._step = cuda_step(self._stream, buffers.place, launch, buffers.fetch)
        return self._step

    def _binding(self, buffers: CudaBuffers) -> Any:
        import torch

        binding, index = self._session.io_binding(), torch.cuda.current_device()
        for name, tensor in buffers.inputs.items():
            dtype = self.inputs[name].dtype
            binding.bind_input(name, "cuda", index, dtype, tuple(tensor.shape), tensor.data_ptr())
        for name, tensor in buffers.outputs.items():
            dtype = self.outputs[name].dtype
            binding.bind_output(name, "cuda", index, dtype, tuple(tensor.shape), tensor.data_ptr())
        return binding


def has_cuda_provider() -> bool:
    """Return whether the installed ONNX Runtime has CUDA support."""
    import onnxruntime

    return PROVIDER in onnxruntime.get_available_providers()


def _require_cuda(path: str | Path) -> None:
    if not has_cuda_provider():
        raise WorkError(f"{path}: ONNX Runtime has no CUDA support, got onnxruntime for the CPU; {INSTALL}")
    import torch

    if not torch.cuda.is_available():
        raise WorkError(f"{path}: needs a GPU, got a machine without CUDA; use --runtime onnxruntime")
