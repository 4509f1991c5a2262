"""The GPU architectures to compile for: $TORCH_CUDA_ARCH_LIST, those of this machine's GPUs, or a
default.

An architecture is written as in torch: "8.6", "9.0a", "12.0+PTX".
"""

from __future__ import annotations

import os
import re

from .report import UnavailableError

DEFAULT = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "11.0", "12.0+PTX")

# The names that torch.utils.cpp_extension accepts, for the GPUs of CUDA 12.6 and later.
NAMED = {
    "Volta": "7.0+PTX",
    "Turing": "7.5+PTX",
    "Ampere": "8.0;8.6+PTX",
    "Ampere+Tegra": "8.7",
    "Ada": "8.9+PTX",
    "Hopper": "9.0+PTX",
    "Blackwell": "10.0;10.3;12.0;12.1+PTX",
    "Blackwell+Tegra": "11.0",
}


def parse(text: str) -> tuple[str, ...]:
    """Parses "8.6+PTX 8.0" or "8.0;Hopper" to a tuple in numerical order, without duplicates."""
    words = re.split(r"[;,\s]+", text.strip())
    words = [part for word in words for part in NAMED.get(word, word).split(";")]
    with_ptx: dict[str, bool] = {}
    for word in words:
        found = re.fullmatch(r"(\d+\.\d[af]?)(\+PTX)?", word)
        if not found:
            raise UnavailableError(
                f"TORCH_CUDA_ARCH_LIST holds {word!r}; expected numbers such as "
                f"8.6, 9.0a, 12.0+PTX, or names: {', '.join(NAMED)}",
                "correct or unset TORCH_CUDA_ARCH_LIST",
            )
        with_ptx[found.group(1)] = with_ptx.get(found.group(1), False) or bool(found.group(2))
    return tuple(f"{number}{'+PTX' * with_ptx[number]}" for number in sorted(with_ptx, key=order))


def order(architecture: str) -> tuple[int, int, str]:
    """A sort key by number: 10.0 comes after 9.0."""
    major, minor, suffix = re.fullmatch(r"(\d+)\.(\d)([af]?)(?:\+PTX)?", architecture).groups()  # type: ignore[union-attr]
    return int(major), int(minor), suffix


# Machine code for 9.0 has the matrix products of warpgroups (csrc/cuda/wgmma.cuh), which only 9.0
# has. All GPUs of 9.0 run it; later ones need PTX without them.
SPECIFIC = {"90": "90a"}


def gencode(architectures: tuple[str, ...]) -> list[str]:
    """nvcc's flags: machine code for each architecture, and PTX for later GPUs if requested."""
    flags = []
    for architecture in architectures:
        number = architecture.removesuffix("+PTX").replace(".", "")
        specific = SPECIFIC.get(number, number)
        flags.append(f"-gencode=arch=compute_{specific},code=sm_{specific}")
        if architecture.endswith("+PTX"):
            number = number.rstrip("af")
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def wanted() -> list[tuple[str, ...]]:
    """The architectures to compile for; then those for which a build on this machine may exist that
    was made when no GPU was visible."""
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
    if asked:
        return [parse(asked)]
    present = of_this_machine()
    return [present, DEFAULT] if present else [DEFAULT]


def of_this_machine() -> tuple[str, ...]:
    """The architectures of all GPUs in this machine, including hidden ones, so that
    CUDA_VISIBLE_DEVICES does not lead to several cached builds. Uses NVML if available, because
    initialising CUDA would make fork unsafe."""
    numbers = from_nvml()
    if numbers is None:
        import torch

        count = torch.cuda.device_count()
        numbers = [torch.cuda.get_device_capability(index) for index in range(count)]
    return parse(";".join(f"{major}.{minor}" for major, minor in numbers)) if numbers else ()


def from_nvml() -> list[tuple[int, int]] | None:
    """The compute capability of every GPU, or None if NVML is not available."""
    import ctypes

    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    if nvml.nvmlInit_v2() != 0:
        return None
    try:
        count = ctypes.c_uint()
        if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
            return None
        found = []
        for index in range(count.value):
            device, major, minor = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_int()
            failed = nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device))
            failed = failed or nvml.nvmlDeviceGetCudaComputeCapability(
                device, ctypes.byref(major), ctypes.byref(minor)
            )
            if failed:
                return None
            found.append((major.value, minor.value))
        return found
    finally:
        nvml.nvmlShutdown()


def known_to(nvcc: str, architectures: tuple[str, ...]) -> tuple[str, ...]:
    """The architectures that this nvcc supports. A default list is reduced to them; any other must
    be supported completely."""
    from .toolchain import output_of

    known = re.findall(r"compute_(\d+)", output_of(nvcc, "--list-gpu-arch"))
    fits = tuple(a for a in architectures if re.sub(r"\D", "", a.removesuffix("+PTX")) in known)
    if fits == architectures or not known:
        return architectures
    if architectures == DEFAULT and fits:
        return (*fits[:-1], f"{fits[-1].removesuffix('+PTX')}+PTX")
    raise UnavailableError(
        f"{nvcc} cannot compile for {', '.join(a for a in architectures if a not in fits)}; "
        f"it knows {', '.join(known)}",
        "install a newer CUDA toolkit and set CUDA_HOME, or set TORCH_CUDA_ARCH_LIST",
    )
