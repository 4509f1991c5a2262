"""The compilers c++ and nvcc: their location and identity, and the number of parallel processes."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from dataclasses import dataclass
from glob import glob

from .report import RETRY, UnavailableError

# PyPI's packages of the toolkit, from CUDA 13 on; their minor versions must be equal.
PYPI_TOOLKIT = (
    "nvidia-cuda-nvcc", "nvidia-cuda-crt", "nvidia-cuda-cccl", "nvidia-nvvm", "nvidia-cuda-runtime",
)  # fmt: skip


@dataclass(frozen=True)
class Compiler:
    """A command, and the identity of its installation: path, size and time of its files."""

    command: tuple[str, ...]
    identity: tuple[str, ...]


@dataclass(frozen=True)
class Toolkit:
    """An nvcc and its toolkit."""

    nvcc: str
    version: str  # "13.0"
    root: str

    @property
    def includes(self) -> list[str]:
        found = headers(self.root)
        if not found:
            raise UnavailableError(
                f"the CUDA toolkit in {self.root} lacks cuda_fp16.h or nv/target",
                toolkit_cure(self.version),
            )
        return found

    def static_runtime(self) -> str:
        """The path of libcudart_static.a, whose folder differs between toolkits."""
        for folder in ("lib64", "lib", "targets/*/lib", "lib/*-linux-gnu"):
            for path in glob(os.path.join(self.root, folder, "libcudart_static.a")):
                return path
        raise UnavailableError(
            f"the CUDA toolkit in {self.root} has no libcudart_static.a", toolkit_cure(self.version)
        )


def identity(path: str) -> str:
    info = os.stat(path)
    return f"{path} {info.st_size} {info.st_mtime_ns}"


def cxx() -> Compiler:
    """$CXX, which may consist of several words ("ccache g++"), else c++, g++ or clang++."""
    chosen = shlex.split(os.environ.get("CXX", ""))
    candidates = [chosen] if chosen else [["c++"], ["g++"], ["clang++"]]
    for command in candidates:
        paths = [shutil.which(word) for word in command]
        if paths[0]:
            files = tuple(identity(path) for path in paths if path)
            return Compiler((paths[0], *command[1:]), files)
    if chosen:
        raise UnavailableError(
            f"CXX={os.environ['CXX']} was not found", f"set or unset CXX, then: {RETRY}"
        )
    raise UnavailableError(
        "no C++ compiler was found (c++, g++, clang++ on PATH, or CXX)",
        f"apt install g++, or conda install -c conda-forge cxx-compiler, then: {RETRY}",
    )


def host_compiler(compiler: Compiler) -> str:
    """The compiler behind a launcher such as ccache, because nvcc accepts a program, not a
    command."""
    programs = [word for word in compiler.command if not word.startswith("-")]
    return shutil.which(programs[-1]) or programs[-1]


def nvcc_candidates() -> list[str]:
    """Every nvcc found: in $CUDA_HOME, $CUDA_PATH, PATH, PyPI's packages and the default folder."""
    folders = [os.path.join(os.environ.get(name, ""), "bin") for name in ("CUDA_HOME", "CUDA_PATH")]
    folders = [folder for folder in folders if os.path.isabs(folder)]
    found = [shutil.which("nvcc", path=folder) for folder in folders]
    found.append(shutil.which("nvcc"))
    found += [shutil.which("nvcc", path=os.path.join(root, "bin")) for root in pypi_roots()]
    found.append(shutil.which("nvcc", path="/usr/local/cuda/bin"))
    return list(dict.fromkeys(path for path in found if path))


def pypi_roots() -> list[str]:
    """The folders of PyPI's CUDA packages: nvidia/cu13, ..."""
    return [
        root for entry in sys.path if entry for root in sorted(glob(f"{entry}/nvidia/cu[0-9]*"))
    ]


def cuda_includes() -> list[str]:
    """The folders of the CUDA headers; needs no nvcc."""
    roots = [os.environ.get("CUDA_HOME", ""), os.environ.get("CUDA_PATH", "")]
    roots += [os.path.dirname(os.path.dirname(path)) for path in nvcc_candidates()]
    roots += [*pypi_roots(), "/usr/local/cuda"]
    for root in filter(None, roots):
        found = headers(root)
        if found:
            return found
    raise UnavailableError(
        "the CUDA headers were not found (under CUDA_HOME, beside nvcc, or from PyPI)",
        "pip install nvidia-cuda-runtime nvidia-cuda-crt nvidia-cuda-cccl",
    )


def headers(root: str) -> list[str]:
    """The include folders of a toolkit, or [] if cuda_fp16.h or a header that it includes is
    missing."""
    found = []
    for header in ("cuda_fp16.h", "nv/target"):
        folders = ("include", "include/cccl", "targets/*/include", "targets/*/include/cccl")
        paths = [path for folder in folders for path in glob(f"{root}/{folder}/{header}")]
        if not paths:
            return []
        found.append(paths[0].removesuffix(f"/{header}"))
    return list(dict.fromkeys(found))


def toolkit(wanted: str | None) -> Toolkit:
    """The first nvcc with the major version of `wanted`, torch's CUDA; any nvcc if it is None."""
    seen = []
    for path in nvcc_candidates():
        version = nvcc_version(path)
        if version and (wanted is None or version.split(".")[0] == wanted.split(".")[0]):
            return Toolkit(path, version, toolkit_root(path))
        seen.append(f"{path} is {f'CUDA {version}' if version else 'not working'}")
    if not seen:
        raise UnavailableError(
            "no nvcc was found (CUDA_HOME, CUDA_PATH, PATH, PyPI's nvidia-cuda-nvcc)",
            f"{toolkit_cure(wanted)}, then: {RETRY}",
        )
    raise UnavailableError(
        f"nvcc and torch differ: torch was built for CUDA {wanted or 'any'}, but {'; '.join(seen)}",
        f"{toolkit_cure(wanted)}, then: {RETRY}",
    )


def toolkit_cure(wanted: str | None) -> str:
    """The command that installs a compiler for torch's CUDA."""
    version = wanted or "13.0"
    if int(version.split(".")[0]) < 13:  # PyPI's older packages contain no nvcc
        return f"install the CUDA toolkit {version} and set CUDA_HOME to it"
    pins = " ".join(f"'{package}=={version}.*'" for package in PYPI_TOOLKIT)
    return f"pip install {pins}"


def nvcc_version(path: str) -> str:
    """The version, "13.0", or "" if this nvcc does not run."""
    found = re.search(r"release (\d+\.\d+)", output_of(path, "--version"))
    return found.group(1) if found else ""


def toolkit_root(path: str) -> str:
    """The toolkit's folder, as reported by nvcc, because the nvcc on PATH may be a wrapper script
    elsewhere."""
    found = re.search(
        r"^#\$ TOP=(.*)$", output_of(path, "--dryrun", "-E", "-x", "cu", os.devnull), re.M
    )
    root = found.group(1).strip() if found else os.path.dirname(os.path.dirname(path))
    return os.path.realpath(root)


def output_of(*command: str) -> str:
    """The output of a short command (stdout and stderr), or "" if it cannot run."""
    import subprocess

    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr


def ninja() -> str:
    try:
        import ninja as package
    except ImportError:
        found = shutil.which("ninja")
    else:
        found = shutil.which("ninja", path=package.BIN_DIR) or shutil.which("ninja")
    if not found:
        raise UnavailableError("ninja was not found", f"pip install ninja, then: {RETRY}")
    return found


def jobs(files: int, gibibytes_each: float) -> int:
    """$MAX_JOBS, else as many compilers as cores, free memory and the number of files permit."""
    limit = os.environ.get("MAX_JOBS", "")
    if limit:
        if not limit.isdigit() or int(limit) < 1:
            raise UnavailableError(
                f"MAX_JOBS must be a positive number, got {limit!r}", "unset MAX_JOBS"
            )
        return int(limit)
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, int(min(cores, files, free_gibibytes() / gibibytes_each)))


def free_gibibytes() -> float:
    """The available memory of the machine, or of the container if that is less."""
    try:
        with open("/proc/meminfo") as lines:
            free = next(float(line.split()[1]) * 1024 for line in lines if "MemAvailable" in line)
    except (OSError, StopIteration):
        return float("inf")
    try:
        with (
            open("/sys/fs/cgroup/memory.max") as limit,
            open("/sys/fs/cgroup/memory.current") as used,
        ):
            free = min(free, float(limit.read().replace("max", "inf")) - float(used.read()))
    except (OSError, ValueError):
        pass
    return max(free, 0.0) / 2**30
