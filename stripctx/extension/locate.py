"""Locates the sources, the prebuilt libraries and the cache. Starts no process."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress

from .report import UnavailableError

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SOURCE_SUFFIXES = (".hpp", ".cpp", ".cuh", ".cu", ".h")


def checkout() -> str | None:
    """The repository's root if the package is imported from a checkout, else None."""
    root = os.path.dirname(PACKAGE)
    is_checkout = os.path.isfile(os.path.join(root, "pyproject.toml"))
    return root if is_checkout and os.path.isdir(os.path.join(root, "csrc")) else None


def source_root() -> str:
    """The folder that contains csrc/: the package if it is installed, else the checkout."""
    if os.path.isdir(os.path.join(PACKAGE, "csrc")):
        return PACKAGE
    root = checkout()
    if root is None:
        raise UnavailableError(
            f"the C++ sources are missing: {PACKAGE} holds no csrc",
            "pip install --force-reinstall stripctx",
        )
    return root


def source_files(folder: str) -> list[str]:
    """Every source under `folder`, sorted by name."""
    found = []
    for parent, _, names in os.walk(folder):
        found += [os.path.join(parent, name) for name in names if name.endswith(SOURCE_SUFFIXES)]
    return sorted(found)


def prebuilt_folder() -> str:
    return os.path.join(PACKAGE, "lib")


def cache_root() -> str:
    """The configured cache folder, or the default. It need not exist or be usable."""
    environment = os.environ
    if environment.get("STRIPCTX_CACHE_DIR"):
        return os.path.abspath(os.path.expanduser(environment["STRIPCTX_CACHE_DIR"]))
    if environment.get("TORCH_EXTENSIONS_DIR"):
        return os.path.abspath(os.path.join(environment["TORCH_EXTENSIONS_DIR"], "stripctx"))
    base = environment.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.abspath(os.path.join(base, "stripctx"))


def temporary_root() -> str:
    """The replacement for an unusable cache: the same folder for all processes of this user."""
    return os.path.join(tempfile.gettempdir(), f"stripctx-{os.getuid()}")


def lookup_roots() -> Iterator[str]:
    """The folders that may contain a cached build, in order of preference."""
    yield cache_root()
    with suppress(OSError):  # there may be no usable temporary folder
        if is_private(temporary_root()):
            yield temporary_root()


def build_root() -> tuple[str, str]:
    """The folder to build in, and the reason why it is not `cache_root()`, or ""."""
    wanted = cache_root()
    problem = why_unusable(wanted)
    if not problem:
        return wanted, ""
    root = temporary_root()
    with suppress(OSError):
        os.mkdir(root, mode=0o700)
    if not is_private(root):  # another user owns a folder of that name
        root = tempfile.mkdtemp(prefix="stripctx-")
    second_problem = why_unusable(root)
    if second_problem:
        raise UnavailableError(
            f"no folder to build in: {wanted}: {problem}; {root}: {second_problem}",
            "set STRIPCTX_CACHE_DIR to a folder that can be written and executed from",
        )
    return root, f"{wanted}: {problem}"


def is_private(folder: str) -> bool:
    """Whether `folder` is a real folder that this user owns and nobody else can write to, so that
    libraries in it can be trusted."""
    try:
        info = os.lstat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(info.st_mode) and info.st_uid == os.getuid() and not info.st_mode & 0o022


def why_unusable(folder: str) -> str:
    """The reason why `folder` cannot be a cache, or "". It must allow writing, executing and
    locking."""
    import fcntl

    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-") as probe:
            os.fchmod(probe.fileno(), 0o700)
            if not os.access(probe.name, os.X_OK):  # the kernel's answer on a noexec mount
                return "programs may not be executed from it (mounted noexec?)"
            fcntl.flock(probe.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.strerror or str(error)
    return ""
