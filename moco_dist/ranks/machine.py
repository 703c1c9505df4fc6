"""Describe the machine of a rank, as far as it may matter to the last bits of a number."""

import platform
import socket
from contextlib import suppress
from pathlib import Path

import torch

from moco_dist.ranks import devices

_CPU_INFO = Path("/proc/cpuinfo")


def here(device: torch.device) -> dict[str, str]:
    """Return the `host` of this rank, its `cpu` with the instructions that torch uses there, and its `device`."""
    cpu = f"{cpu_model()}, {torch.backends.cpu.get_cpu_capability()}"
    return {"host": socket.gethostname(), "cpu": cpu, "device": _device_name(device) or cpu}


def libraries(device: torch.device) -> dict[str, str]:
    """Return the versions of CUDA and cuDNN, where the device is a GPU of theirs."""
    if device.type != "cuda":
        return {}
    return {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}


def cpu_model() -> str:
    """Return the name of the processor, or of its architecture where the system has no other."""
    with suppress(OSError):
        for line in _CPU_INFO.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _device_name(device: torch.device) -> str:
    """Return the name of a GPU; "" for the CPU, and for a device that tells none."""
    if not devices.runs_ahead(device):
        return ""
    return str(getattr(devices.of(device), "get_device_name", lambda _: device.type)(device))
