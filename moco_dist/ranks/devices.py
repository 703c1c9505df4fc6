"""Choose a rank's device, set torch's global switches, and do all that differs between a GPU and the CPU.

A device other than the CPU runs ahead: the host queues work on it and goes on. Its streams, events and memory are those
of torch's module for it (`torch.cuda`), asked for by `of`, so that the suite's stand-in for a GPU runs the same lines.
"""

import ctypes
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from moco_dist.config import Config, speed
from moco_dist.errors import OwnMistake, UserError, reason

ACCELERATOR = "cuda"
"""The type of device that `device.type` means beside the CPU; the suite puts its stand-in here."""

_GROUPS, _GROUPS_ROOT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
"""The file in which Linux names this process's control groups, and the folder in which they lie."""
_TRIM_THRESHOLD, _MOST_MAPPINGS = -1, -4
"""Two of glibc's parameters (`man mallopt`): how much freed memory it keeps, and how many blocks it maps singly."""


def count() -> int:
    """Count the devices beside the CPU on this node."""
    module = torch.get_device_module(ACCELERATOR)
    return int(module.device_count()) if module.is_available() else 0


def pick(config: Config, local_rank: int) -> torch.device:
    """Return the device that `device.type` asks for, for one rank of a node.

    Raises:
        UserError: there is no device, or there are too few.
        OwnMistake: this rank does not see the devices of the ranks before it.
    """
    device_type, available = config.device.type, count()
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if device_type == "cpu" or (device_type == "auto" and available < local_ranks):
        return torch.device("cpu")
    if not available:
        raise UserError.of("device.type", device_type, "there is no CUDA device here", "use device.type=cpu or auto")
    if available < local_ranks:
        rule = f"there are {available} CUDA devices for {local_ranks} ranks"
        raise UserError.of("device.type", device_type, rule, f"use --nproc_per_node={available}")
    if available <= local_rank:  # where nothing says how many ranks there are
        rule = f"there are {available} CUDA devices for the rank with LOCAL_RANK={local_rank}"
        fix = "start the ranks with torchrun, or let each see all GPUs of its node (not srun --gpus-per-task)"
        raise OwnMistake.of("device.type", device_type, rule, fix)
    return torch.device(ACCELERATOR, local_rank)


def prepare(config: Config, device: torch.device) -> None:
    """Set the global switches of torch that the config asks for."""
    torch.set_num_threads(config.device.threads)
    if not runs_ahead(device):
        _keep_freed_memory()
    if speed.chosen(config, on_cpu=not runs_ahead(device)).compile:
        _keep_compiled_code()  # at once: torch settles the place when it makes an optimizer
    if config.device.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = runs_ahead(device) and not config.device.deterministic


def _keep_freed_memory() -> None:
    """Let glibc keep what is freed: a step needs the same memory as the last one, and new pages cost time.

    The system clears each page before it is used, 4 kB at a time: 45 MB of gradients a BatchNorm group, for example.
    """
    _tune_malloc({_TRIM_THRESHOLD: 2**31 - 1, _MOST_MAPPINGS: 0})


def release_freed_memory() -> None:
    """Let glibc return freed memory to the system again, as it does by default, also the memory that it has kept."""
    _tune_malloc({_TRIM_THRESHOLD: 128 * 1024, _MOST_MAPPINGS: 65536})  # what it begins with
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _tune_malloc(parameters: Mapping[int, int]) -> None:
    with suppress(AttributeError, OSError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in parameters.items():
            mallopt(parameter, value)


def _keep_compiled_code() -> None:
    """Make torch.compile keep its code in the user's cache directory, where it is not told another place.

    Torch's own place is in /tmp, which the next job may find empty. It stays where there is no home to write to.
    """
    os.environ.setdefault("TORCHINDUCTOR_FX_GRAPH_CACHE", "1")
    if "TORCHINDUCTOR_CACHE_DIR" in os.environ:
        return
    with suppress(OSError, RuntimeError):
        base = Path(os.environ.get("XDG_CACHE_HOME", ""))
        folder = (base if base.is_absolute() else Path.home() / ".cache") / "moco-dist" / "torch-compile"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)


def begin_step(config: Config) -> None:
    """Tell CUDA graphs, where torch.compile makes them, that what they hold of the last step may be overwritten."""
    if config.device.compile == "reduce-overhead":
        with suppress(ImportError):  # no compiler, so no graphs
            torch.compiler.cudagraph_mark_step_begin()


def runs_ahead(device: torch.device) -> bool:
    """Return whether the host queues work on the device and goes on, so that reading from it is waiting for it."""
    return device.type != "cpu"


def of(device: torch.device) -> Any:
    """Return torch's module for a device that runs ahead: `torch.cuda`, with `Stream`, `Event` and the like."""
    return torch.get_device_module(device)


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Return a context that computes products and convolutions in a half precision; a wider dtype changes nothing."""
    return torch.autocast(device.type, dtype, enabled=dtype in (torch.bfloat16, torch.float16))


@contextmanager
def may_wait(device: torch.device) -> Iterator[None]:
    """Mark the places where the host is meant to wait for the device, for `set_sync_debug_mode("error")`."""
    mode = of(device).get_sync_debug_mode() if runs_ahead(device) else 0
    if not mode:  # to set it, even to what it is, makes torch warn of a prototype
        yield
        return
    of(device).set_sync_debug_mode(0)
    try:
        yield
    finally:
        of(device).set_sync_debug_mode(mode)


def memory(device: torch.device) -> int:
    """Return the bytes that a rank may use: its GPU's free ones, or half its share of the machine's or the job's."""
    if runs_ahead(device):
        free, _ = of(device).mem_get_info(device)
        return int(free + of(device).memory_reserved(device) - of(device).memory_allocated(device))
    everything = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(everything, *_memory_limits()) // 2 // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def peak_memory(device: torch.device) -> int:
    """Return the most bytes of a device that runs ahead which tensors of this process have taken at once."""
    return int(of(device).max_memory_allocated(device))


def use(device: torch.device) -> float | None:
    """Return the share of the last second or so that a GPU was at work, by anyone; None where nobody tells."""
    try:
        return float(of(device).utilization(device)) / 100
    except Exception:  # no pynvml, no right to ask, a slice of a GPU: each fails in its own way, and training goes on
        return None


def kernels(module: str, try_out: Callable[[Any], object], what: str) -> Any:
    """Import a module of Triton's kernels and try it out; return None where it does not work, which a warning tells."""
    try:
        imported = importlib.import_module(module)
        try_out(imported)
    except Exception as error:  # no Triton, no C compiler, an old GPU or driver: each fails in its own way
        warnings.warn(f"{what} are computed without Triton, which is slower ({reason(error)})", stacklevel=2)
        return None
    return imported


def cores() -> int:
    """Return the number of cores that a rank may use: its share of those that the machine, or the job, has here."""
    ranks, own = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), len(os.sched_getaffinity(0))
    of_node = [*_core_limits()]
    if not _is_task_of_slurm():  # which SLURM binds to cores of its own, that no other rank has
        of_node.append(own)
    if (of_job := os.environ.get("SLURM_CPUS_ON_NODE", "")).isdecimal():  # where SLURM binds no process to its cores
        of_node.append(int(of_job))
    return max(1, min([own, *(count // ranks for count in of_node)]))


def _is_task_of_slurm() -> bool:
    """Tell whether each rank is a task of SLURM's by itself, and not started by torchrun, which is one for all."""
    pairs = (("SLURM_PROCID", "RANK"), ("SLURM_LOCALID", "LOCAL_RANK"), ("SLURM_STEP_NUM_TASKS", "WORLD_SIZE"))
    same = all(os.environ.get(of_slurm, "") == os.environ.get(of_rank) for of_slurm, of_rank in pairs)
    return same and "TORCHELASTIC_RUN_ID" not in os.environ


def _core_limits(groups: Path = _GROUPS, root: Path = _GROUPS_ROOT) -> Iterator[int]:
    """Yield the whole cores' worth of time that control groups allow."""
    for folder, version in _groups_of("cpu", groups, root):
        with suppress(OSError, ValueError):  # not seen from inside a container; "max"
            names = ("cpu.max",) if version == 2 else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            quota, period = " ".join((folder / name).read_text() for name in names).split()
            if int(quota) > 0:
                yield max(1, int(quota) // int(period))


def _memory_limits(groups: Path = _GROUPS, root: Path = _GROUPS_ROOT) -> list[int]:
    """Return the bytes that this process's control groups and those above them allow, set by SLURM or a container."""
    limits = [sys.maxsize]
    for folder, version in _groups_of("memory", groups, root):
        with suppress(OSError, ValueError):  # not seen from inside a container; "max"
            limits.append(int((folder / ("memory.max" if version == 2 else "memory.limit_in_bytes")).read_text()))
    return limits


def _groups_of(controller: str, groups: Path, root: Path) -> Iterator[tuple[Path, int]]:
    """Yield the folders of this process's control groups and of those above them, and the version of each."""
    for line in groups.read_text().splitlines() if groups.exists() else ():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            top, version = root, 2
        elif controller in controllers.split(","):
            top, version = root / controller, 1
        else:
            continue
        own = top / path.lstrip("/")
        yield from ((folder, version) for folder in (own, *own.parents) if folder.is_relative_to(top))
