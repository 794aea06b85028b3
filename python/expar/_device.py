"""xp_device and xp_stream for torch's devices and streams."""
import ctypes
import os
import threading
from typing import Any, Dict, Tuple

import torch

from expar import _capi, _library

DTYPES = {torch.float32: _capi.F32, torch.bfloat16: _capi.BF16}
ALIGNMENT = 16  # bytes; of every pointer that the library gets


class Device:
    """One xp_device, and its streams over torch's streams.

    On the CPU work is done when the call returns. On a GPU work is queued on torch's current stream of that GPU.
    """

    def __init__(self, device: torch.device):
        self.lib = _library.load()
        self.torch_device = device
        self.is_cuda = device.type == "cuda"
        self._lock = threading.RLock()  # a CPU device runs one call at a time
        self._streams: Dict[int, int] = {}
        args = _capi.DeviceArgs(kind=_capi.DEVICE_CUDA if self.is_cuda else _capi.DEVICE_CPU,
                                index=device.index or 0, n_threads=max(1, torch.get_num_threads()))
        created = ctypes.c_void_p()
        self.lib.call("xp_device_create", ctypes.byref(args), ctypes.byref(created))
        self.pointer = created.value

    def stream(self) -> int:
        """The xp_stream over torch's current stream of this device. Kept: torch's streams are few and live long."""
        native = torch.cuda.current_stream(self.torch_device).cuda_stream if self.is_cuda else 0
        found = self._streams.get(native)
        if found is None:
            created = ctypes.c_void_p()
            self.lib.call("xp_stream_from_native", self.pointer, native or None, ctypes.byref(created))
            found = self._streams[native] = created.value
        return found

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the library that returns a status; raises with the library's message."""
        if self.is_cuda:
            self.lib.call(name, *arguments)
            return
        with self._lock:
            self.lib.call(name, *arguments)

    def close(self) -> None:
        """Frees streams and device; nothing of them may be in use."""
        for stream in self._streams.values():
            self.lib.cdll.xp_stream_destroy(stream)
        self._streams.clear()
        if self.pointer is not None:
            self.lib.cdll.xp_device_destroy(self.pointer)
            self.pointer = None


_devices: Dict[Tuple[int, str, int], Device] = {}
_devices_lock = threading.Lock()


def of(device: torch.device) -> Device:
    """The process's device for ops that belong to no group.

    Raises:
        ValueError: a device that is neither the CPU nor a CUDA GPU.
        NotImplementedError: this build or machine has no CUDA for libexpar (the message says why).
    """
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"expar works on CPU and CUDA tensors, not on {device}")
    index = 0 if device.type == "cpu" else device.index if device.index is not None else torch.cuda.current_device()
    key = (os.getpid(), device.type, index)  # threads of a pool are not there after a fork
    with _devices_lock:
        if key not in _devices:
            _devices[key] = Device(torch.device(device.type, index) if device.type == "cuda" else torch.device("cpu"))
        return _devices[key]


def dtype_of(tensor: torch.Tensor, what: str) -> int:
    """The xp_dtype of rows."""
    code = DTYPES.get(tensor.dtype)
    if code is None:
        raise ValueError(f"{what} is {tensor.dtype}, must be torch.float32 or torch.bfloat16")
    return code


def is_aligned(tensor: torch.Tensor) -> bool:
    return tensor.data_ptr() % ALIGNMENT == 0


def dense(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself, or a copy where it is not contiguous or not aligned as the library needs it."""
    tensor = tensor.contiguous()
    return tensor if is_aligned(tensor) else tensor.clone(memory_format=torch.contiguous_format)


def choose(device: Any) -> torch.device:
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(device)
    except (TypeError, RuntimeError, ValueError):
        raise ValueError(f"device is {device!r}, must be the CPU or a CUDA device") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {device}, must be the CPU or a CUDA device")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu") if device.type == "cpu" else device


_NOTHING = (ctypes.c_double * 4)()  # address of tensors without elements; a multiple of 16


def some_pointer(tensor: torch.Tensor) -> int:
    """The library wants an address for tensors without rows, too."""
    return tensor.data_ptr() or ctypes.addressof(_NOTHING)
