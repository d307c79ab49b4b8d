"""Checks of disk, memory, accelerators, processes and clock."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from trivium.cli.checks.findings import Check, Finding
from trivium.lazy import torch

GIB = 1 << 30
MIB = 1 << 20
LEAST_DISK, GOOD_DISK = 1 * GIB, 5 * GIB
LEAST_MEMORY, GOOD_MEMORY = 1 * GIB, 3 * GIB
LEAST_SHARED = 64 * MIB
LEAST_FILES = 1024
SLOW_WRITE = 50 * MIB
SLOW_FSYNC = 0.1
_WRITTEN = 32 * MIB
_NETWORK = ("nfs", "cifs", "smb", "fuse.sshfs", "9p", "lustre", "afs")


def check_disk(runs: Path) -> Iterator[Finding]:
    """Room, permission and speed where the runs are written."""
    place = existing_parent(runs)
    free = shutil.disk_usage(place).free
    fix = "free some space, or choose another disk with --runs"
    if free < GOOD_DISK:
        level = "fail" if free < LEAST_DISK else "warn"
        yield Finding("disk", level, f"only {free / GIB:.1f} GiB are free for {runs}", fix)  # type: ignore[arg-type]
    system = os.statvfs(place) if hasattr(os, "statvfs") else None
    if system is not None and system.f_files and system.f_favail < 1000:
        yield Finding("disk", "fail", f"only {system.f_favail} more files fit on the disk of {runs}", fix)
    kind = file_system(place)
    if kind.startswith(_NETWORK):
        local = "keep the runs on a local disk (--runs), and copy what is finished"
        yield Finding("disk", "warn", f"{runs} is on a network file system ({kind}): slow saves", local)
    try:
        speed, latency = disk_speed(place)
    except OSError as error:
        other = "choose a folder you may write to with --runs"
        yield Finding("disk", "fail", f"cannot write to {place}: {error.strerror}", other)
        return
    slow = [
        *([f"{speed / MIB:.0f} MiB/s"] if speed < SLOW_WRITE else []),
        *([f"{latency * 1000:.0f} ms for one flush"] if latency > SLOW_FSYNC else []),
    ]
    if slow:
        rarely = "save less often (train.checkpoint_every), or use a faster disk with --runs"
        yield Finding("disk", "warn", f"the disk is slow: {', '.join(slow)}", rarely)
    elif free >= GOOD_DISK:
        message = f"{free / GIB:.0f} GiB free, {speed / MIB:.0f} MiB/s, {latency * 1000:.1f} ms for one flush"
        yield Finding("disk", "ok", message)


def existing_parent(path: Path) -> Path:
    """The path itself, or the nearest folder above it that exists."""
    return next(place for place in (path.resolve(), *path.resolve().parents) if place.exists())


def file_system(path: Path) -> str:
    """Type of the file system a path lies on (`ext4`, `nfs4`), or nothing where that is not known."""
    mounts = Path("/proc/mounts")
    if not mounts.is_file():
        return ""
    best, kind = "", ""
    for line in mounts.read_text(errors="replace").splitlines():
        _, point, found, *_ = line.split(" ")
        inside = str(path).startswith(point.rstrip("/") + "/") or str(path) == point
        if inside and len(point) >= len(best):
            best, kind = point, found
    return kind


def disk_speed(folder: Path) -> tuple[float, float]:
    """(bytes per second of a flushed write, median seconds to flush a small one)."""
    with tempfile.TemporaryFile(dir=folder) as stream:
        block = os.urandom(MIB)
        started = time.perf_counter()
        for _ in range(_WRITTEN // MIB):
            stream.write(block)
        stream.flush()
        os.fsync(stream.fileno())
        speed = _WRITTEN / (time.perf_counter() - started)
        latencies = []
        for _ in range(5):
            stream.write(b"x" * 4096)
            stream.flush()
            started = time.perf_counter()
            os.fsync(stream.fileno())
            latencies.append(time.perf_counter() - started)
    return speed, statistics.median(latencies)


def check_memory(runs: Path) -> Iterator[Finding]:
    """What is available, and limits below what the machine has."""
    available = available_memory()
    if available is None:
        return
    if available < GOOD_MEMORY:
        level = "fail" if available < LEAST_MEMORY else "warn"
        fix = "close other programs; or a smaller model.preset, train.micro_batch_size=1"
        yield Finding("memory", level, f"only {available / GIB:.1f} GiB are available", fix)  # type: ignore[arg-type]
    else:
        yield Finding("memory", "ok", f"{available / GIB:.1f} GiB available")


def available_memory() -> int | None:
    """Bytes this process can still get: the machine's, the container's and the shell's limit, whichever is least."""
    limits = []
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        rows = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        limits.append(int(rows["MemAvailable"].split()[0]) * 1024)
    elif hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
    group = Path("/sys/fs/cgroup/memory.max")
    if group.is_file() and (text := group.read_text().strip()) != "max":
        used = Path("/sys/fs/cgroup/memory.current")
        limits.append(int(text) - (int(used.read_text()) if used.is_file() else 0))
    try:
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        if soft != resource.RLIM_INFINITY:
            limits.append(soft)
    except ImportError:
        pass
    return min(limits, default=None)


def check_gpu(runs: Path) -> Iterator[Finding]:
    """Accelerators torch can use, and those it should be able to."""
    driver = nvidia_driver()
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(number)
            name = f"{found.name}, {found.total_memory / GIB:.0f} GiB"
            if (found.major, found.minor) < (8, 0):
                fix = "use train.precision=fp16 or fp32"
                yield Finding("gpu", "warn", f"{name}: no bfloat16", fix)
            else:
                yield Finding("gpu", "ok", f"{name}, bfloat16; {packed_rows(number)}")
    elif os.environ.get("CUDA_VISIBLE_DEVICES") == "" and driver is not None:
        yield Finding("gpu", "warn", "CUDA_VISIBLE_DEVICES hides the GPU", "unset CUDA_VISIBLE_DEVICES")
    elif driver is not None and torch.version.cuda is None:
        fix = "install a torch build with CUDA (https://pytorch.org)"
        yield Finding("gpu", "warn", f"there is an NVIDIA GPU, but torch {torch.__version__} is for CPUs only", fix)
    elif driver is not None:
        fix = "update the NVIDIA driver, or install a torch build for an older CUDA (https://pytorch.org)"
        message = f"torch is built for CUDA {torch.version.cuda}, which driver {driver} cannot run"
        yield Finding("gpu", "warn", message, fix)
    elif torch.backends.mps.is_available():
        yield Finding("gpu", "ok", "Apple GPU (mps)")
    else:
        yield Finding("gpu", "ok", "none; everything runs on the CPU")


def packed_rows(number: int) -> str:
    """Which way the attention of packed rows takes on this GPU in half precision."""
    from trivium.models.attention import varlen_reason

    reason = varlen_reason(torch.device("cuda", number))
    return f"packed rows: a call for each length ({reason})" if reason else "packed rows: one kernel"


def nvidia_driver() -> str | None:
    """Version of the NVIDIA driver, or None without one."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "that does not answer"
    lines = done.stdout.split()
    return lines[0] if done.returncode == 0 and lines else None


def check_processes(runs: Path) -> Iterator[Finding]:
    """Starting processes, shared memory and open files."""
    try:
        multiprocessing.get_context("spawn").Lock()
    except OSError as error:
        fix = "give the container /dev/shm (docker run --shm-size=1g)"
        yield Finding("processes", "fail", f"processes cannot share memory: {error}", fix)
    shared = Path("/dev/shm")
    if shared.is_dir() and (room := shutil.disk_usage(shared).free) < LEAST_SHARED:
        fix = "docker run --shm-size=1g, or delete old files in /dev/shm"
        yield Finding("shared memory", "warn", f"/dev/shm has only {room / MIB:.0f} MiB left", fix)
    if not start_process():
        fix = (
            "look for limits on processes (ulimit -u) and for a start-up file that fails (PYTHONSTARTUP, sitecustomize)"
        )
        yield Finding("processes", "fail", "a second Python process could not be started", fix)
    else:
        yield Finding("processes", "ok", "new processes start")
    files = open_file_limit()
    if files is not None and files < LEAST_FILES:
        yield Finding("open files", "warn", f"only {files} files may be open at once", f"ulimit -n {4 * LEAST_FILES}")


def start_process() -> bool:
    """Whether another Python process starts and ends well."""
    import sys

    try:
        done = subprocess.run([sys.executable, "-c", "import trivium"], capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def open_file_limit() -> int | None:
    """How many files this process may have open; None where there is no limit to ask for."""
    try:
        import resource
    except ImportError:
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def check_clock(runs: Path) -> Iterator[Finding]:
    """A clock before the newest file of the package cannot be right; one apart from the disk's confuses tools."""
    now = time.time()
    newest = max(file.stat().st_mtime for file in Path(__file__).parents[1].rglob("*.py"))
    fix = "set the clock (timedatectl set-ntp true)"
    if now < newest - 24 * 3600:
        yield Finding("clock", "fail", f"the clock says {time.ctime(now)}, before Trivium was installed", fix)
        return
    place = existing_parent(runs)
    try:
        with tempfile.NamedTemporaryFile(dir=place) as stream:
            apart = abs(Path(stream.name).stat().st_mtime - time.time())
    except OSError:
        return  # said by the check of the disk
    if apart > 60:
        message = f"the clock and the one of the disk {place} are {apart:.0f} s apart"
        yield Finding("clock", "warn", message, fix)
    else:
        yield Finding("clock", "ok", time.strftime("%Y-%m-%d %H:%M", time.localtime(now)))


CHECKS: tuple[Check, ...] = (check_disk, check_memory, check_gpu, check_processes, check_clock)
