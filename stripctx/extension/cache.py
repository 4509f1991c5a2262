"""The cache of built libraries, one folder per key, and new builds.

<root>/stripctx_cpu-<hash>/          stripctx_cpu.so, checksum, build.log, build.ninja
<root>/stripctx_cpu-<hash>.lock      held while building; the kernel frees it when its holder dies
<root>/stripctx_cpu-<hash>.failed/   build.log of the last attempt, where it failed
<root>/stripctx_cpu-<hash>.corrupt/  a library that could not be loaded
<root>/.stripctx_cpu-<hash>.<host>.<pid>  a build under way, or abandoned

Loading a library touches its folder; a new build removes the folders that have not been used for
ninety days. A process about to load a removed library builds it again; one that has loaded it keeps
it, except on NFS after running for ninety days itself.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass

from . import build, locate, ninja
from .report import RETRY, Progress, UnavailableError, say

CHECKSUM = "checksum"
A_DAY = 24 * 3600.0
UNUSED = 90 * A_DAY
OURS = re.compile(r"stripctx_[a-z]+-[0-9a-f]{20}(\.failed|\.corrupt)?")


@dataclass(frozen=True)
class Cached:
    path: str
    log: str
    seconds: float = 0.0  # duration of the build, if this process built it


def checksum(path: str) -> str:
    with open(path, "rb") as file:
        content = file.read()
    return f"{len(content)} {hashlib.sha256(content).hexdigest()}\n"


def seal(path: str) -> None:
    """Writes the checksum of a finished library next to it."""
    with open(f"{path}.{CHECKSUM}", "w") as file:
        file.write(checksum(path))


def intact(path: str) -> bool:
    """Whether the library matches its checksum. Loading a truncated library can kill the
    process."""
    try:
        with open(f"{path}.{CHECKSUM}") as file:
            return file.read() == checksum(path)
    except OSError:
        return False


def find(target: build.Target, key: str) -> Cached | None:
    for root in locate.lookup_roots():
        path = os.path.join(root, key, target.filename)
        if intact(path):
            with suppress(OSError):  # a read-only cache
                os.utime(os.path.dirname(path))
            return Cached(path, os.path.join(root, key, ninja.LOG))
    return None


def failure(root: str, key: str) -> UnavailableError | None:
    """The error of an earlier failed build, which is not repeated at every import."""
    log = os.path.join(root, f"{key}.failed", ninja.LOG)
    if not os.path.isfile(log):
        return None
    return UnavailableError("its build failed before", ninja.cure(log), log)


def remembered_failure(key: str) -> UnavailableError | None:
    found = (failure(root, key) for root in locate.lookup_roots())
    return next((error for error in found if error), None)


def set_aside(path: str) -> None:
    """Renames the folder of a library that cannot be loaded, so that the library is built again."""
    folder = os.path.dirname(path)
    shutil.rmtree(f"{folder}.corrupt", ignore_errors=True)
    with suppress(OSError):
        os.rename(folder, f"{folder}.corrupt")


def give_up(path: str, error: OSError) -> UnavailableError:
    """Records that a library was built twice and cannot be loaded."""
    folder = os.path.dirname(path)
    log = os.path.join(folder, ninja.LOG)
    with suppress(OSError):
        with open(log, "a") as file:
            file.write(f"\nbuilt, but not loadable: {error}\n")
        shutil.rmtree(f"{folder}.failed", ignore_errors=True)
        os.rename(folder, f"{folder}.failed")
        log = os.path.join(f"{folder}.failed", ninja.LOG)
    return UnavailableError(
        f"the library cannot be loaded: {error}", f"read the log, then: {RETRY}", log
    )


def make(target: build.Target, key: str) -> Cached:
    """Builds the library, or waits for another process that is building it."""
    root, problem = locate.build_root()
    if problem:
        say(f"the cache folder cannot be used ({problem}); building in {root}")
    try:
        from filelock import FileLock, Timeout
    except ImportError as error:
        raise UnavailableError(
            "filelock is not installed", f"pip install filelock, then: {RETRY}"
        ) from error
    lock = FileLock(os.path.join(root, f"{key}.lock"))
    before = stamp(root, key)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"waiting for another process that compiles in {root} (it holds {key}.lock)")
        lock.acquire(poll_interval=0.1)
    try:
        found = find(target, key)
        if found:
            return found
        failed = failure(root, key)
        # another process's build failed meanwhile; this one would too
        if failed and stamp(root, key) != before:
            raise failed
        return build_and_publish(target, root, key)
    finally:
        lock.release()


def stamp(root: str, key: str) -> int:
    try:
        return os.stat(os.path.join(root, f"{key}.failed", ninja.LOG)).st_mtime_ns
    except OSError:
        return 0


def build_and_publish(target: build.Target, root: str, key: str) -> Cached:
    """Builds with the lock held. The folder gets its final name only when it is complete."""
    sweep(root, key)
    folder = os.path.join(root, f".{key}.{platform.node()}.{os.getpid()}")
    os.mkdir(folder)
    home, failed = os.path.join(root, key), os.path.join(root, f"{key}.failed")
    progress = Progress(f"the {target.name} kernels")
    ok = False
    try:
        build.compile_library(target, folder, target.filename, progress.step)
        seal(os.path.join(folder, target.filename))
        if os.path.isdir(home):  # not intact, otherwise `find` would have found it
            set_aside(os.path.join(home, target.filename))
        if not publish(folder, home) and not intact(os.path.join(home, target.filename)):
            home = folder  # another process published first, but its library cannot be read here
        shutil.rmtree(failed, ignore_errors=True)
        remove_unused(root)
        ok = True
    except UnavailableError as error:
        if error.log:
            shutil.rmtree(failed, ignore_errors=True)
            publish(folder, failed)
            error.log = os.path.join(failed, ninja.LOG)
        raise
    finally:
        progress.done(ok=ok)
        if home != folder:
            shutil.rmtree(folder, ignore_errors=True)
    return Cached(
        os.path.join(home, target.filename), os.path.join(home, ninja.LOG), progress.seconds
    )


def publish(folder: str, final: str) -> bool:
    """Renames the finished build to its final name. Returns False if a process on another machine,
    to which the lock does not extend, was faster."""
    try:
        os.rename(folder, final)
    except OSError:
        return False
    return True


def sweep(root: str, key: str) -> None:
    """Removes abandoned builds: immediately if they are of this key and host, because this process
    holds the lock; otherwise when they are a day old, because the lock may not extend to other
    hosts."""
    mine = f".{key}.{platform.node()}."
    for entry in os.scandir(root):
        if not entry.name.startswith(".stripctx_"):
            continue
        with suppress(OSError):
            if entry.name.startswith(mine) or time.time() - entry.stat().st_mtime > A_DAY:
                shutil.rmtree(entry.path)


def remove_unused(root: str) -> None:
    """Removes unused folders. Each is first renamed to a name that `sweep` recognises, in case this
    process is killed before it is deleted."""
    for entry in os.scandir(root):
        with suppress(OSError):
            if not OURS.fullmatch(entry.name) or not entry.is_dir(follow_symlinks=False):
                continue
            if time.time() - last_used(entry.path) > UNUSED:
                discarded = os.path.join(root, f".{entry.name}.{platform.node()}.{os.getpid()}")
                os.rename(entry.path, discarded)
                shutil.rmtree(discarded)


def last_used(folder: str) -> float:
    """The folder's modification time, or the latest access time of a file in it, which also covers
    users without write permission."""
    return max([os.stat(folder).st_mtime, *(file.stat().st_atime for file in os.scandir(folder))])
