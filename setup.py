"""What pyproject.toml cannot say: csrc travels inside the package; STRIPCTX_BUILD=1 compiles it;
the description is README.md without its pictures and links to files, which a wheel has not."""

import os
import re
import sys
from pathlib import Path

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


def description() -> str:
    text = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    text = re.sub(r"^!\[.*\]\((?!https?:).*\)\n\n", "", text, flags=re.MULTILINE)
    return re.sub(r"(?<!!)\[([^\]\n]+)\]\((?!https?:)[^)\n]+\)", r"\1", text)


setup(
    long_description=description(),
    long_description_content_type="text/markdown",
    packages=[*find_packages(include=["stripctx", "stripctx.*"]), "stripctx.csrc"],
    package_dir={"stripctx.csrc": "csrc"},
    package_data={
        "stripctx": ["py.typed"],
        "stripctx.csrc": [f"**/*.{suffix}" for suffix in ("hpp", "cpp", "cuh", "cu")],
    },
    distclass=MaybeBinary,
    cmdclass={"build_py": BuildPy, "bdist_wheel": BdistWheel},
)
