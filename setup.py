"""What pyproject.toml cannot say: csrc travels inside the package; STRIPCTX_BUILD=1 compiles it."""

import os
import sys

from setuptools import Distribution, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

BUILDS = os.environ.get("STRIPCTX_BUILD", "0") not in ("", "0")


class BuildPy(build_py):
    def run(self) -> None:
        super().run()
        if BUILDS and not self.editable_mode:
            # as a package of its own, since stripctx itself imports torch
            sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "stripctx"))
            from extension import prebuild

            prebuild.build_all(os.path.join(self.build_lib, "stripctx", "lib"))


class MaybeBinary(Distribution):
    def has_ext_modules(self) -> bool:
        return BUILDS


class BdistWheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        """The libraries depend on the platform, but neither on Python nor on torch's version."""
        python, abi, platform = super().get_tag()
        return ("py3", "none", platform) if BUILDS else (python, abi, platform)


setup(
    packages=[*find_packages(include=["stripctx", "stripctx.*"]), "stripctx.csrc"],
    package_dir={"stripctx.csrc": "csrc"},
    package_data={
        "stripctx": ["py.typed"],
        "stripctx.csrc": [f"**/*.{suffix}" for suffix in ("hpp", "cpp", "cuh", "cu")],
    },
    distclass=MaybeBinary,
    cmdclass={"build_py": BuildPy, "bdist_wheel": BdistWheel},
)
