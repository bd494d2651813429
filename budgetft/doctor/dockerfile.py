"""A Dockerfile for one GPU: Python, the torch build that the GPU needs, pinned packages, budgetft."""

import re
import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path

from budgetft.doctor.builds import Build, numbers
from budgetft.doctor.recipe import EXTRA, pins
from budgetft.installed import own_package

IMAGE = "python:3.11-slim"
"""The Python that the pins of profiles/lock.txt were tested on. torch brings CUDA; the driver is the host's."""
SOURCES = ("pyproject.toml", "README.md", "LICENSE")
FOLDERS = ("profiles", "budgetft")
"""What an image is built from, besides what pip finds."""

_DOCKERFILE = """\
{about}
#   docker build {name_option}-t budgetft .
#   docker run --rm --gpus all --ipc=host -v "$PWD:/work" -v budgetft-cache:/cache budgetft doctor
#
# /work is where you are; /cache keeps trials, downloaded models and converted data. With --user "$(id -u):$(id -g)" the files
# that are written belong to you.
FROM {image}

# Triton, a part of torch, compiles at run time. Any user may write to /cache.
# hadolint ignore=DL3008
RUN apt-get update && \\
    apt-get install -y --no-install-recommends {system_packages} && \\
    rm -rf /var/lib/apt/lists/* && \\
    mkdir -m 1777 /cache

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN pip install {torch_requirements}{index}

{sources}RUN pip install --constraint {lock} {package}

# torch asks for the user's name, and --user has none.
ENV HOME=/cache USER=budgetft NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /work
ENTRYPOINT ["budgetft"]
CMD ["--help"]
"""


def write_dockerfile(
    gpu: str, build: Build, package: str | None = None, others: Sequence[Build] = (), *, command: str, name: str = "Dockerfile"
) -> tuple[str, Path]:
    """The text for ``gpu`` on ``build``, and the folder that ``docker build`` has to be given.

    ``package`` is what is installed as budgetft: a folder with its sources or a wheel, which are copied from that folder, or
    what pip finds by itself; None: this budgetft as it was installed here. ``command`` is what writes the file, ``name`` how
    it is called.
    """
    package = package or own_package(EXTRA)
    path, extra = split_package(package)
    context, lock, system_packages = Path(), "/opt/lock.txt", ["gcc", "libc6-dev"]
    if path.is_dir():
        context, lock = path, "/opt/budgetft/profiles/lock.txt"
        sources = f"COPY {' '.join(SOURCES)} /opt/budgetft/\n"
        sources += "".join(f"COPY {folder} /opt/budgetft/{folder}\n" for folder in FOLDERS)
        package = f"/opt/budgetft{extra}"
    elif path.is_file():
        context, sources = path.parent, f"{_written_lock(lock)}COPY {path.name} /opt/\n"
        package = f"/opt/{path.name}{extra}"
    else:
        sources = _written_lock(lock)
        system_packages += ["git"] * ("git+" in package)
    text = _DOCKERFILE.format(
        about=_about(gpu, build, others, command),
        name_option="" if name == "Dockerfile" else f"-f {name} ",
        image=IMAGE,
        system_packages=" ".join(sorted(system_packages)),
        torch_requirements=" ".join(build.requirements),
        index="" if build.index is None else f" --index-url {build.index}",
        sources=sources,
        lock=lock,
        package=shlex.quote(package),
    )
    return text, context


def split_package(package: str) -> tuple[Path, str]:
    """``/a/folder[nf4]`` is the folder and the extra."""
    match = re.fullmatch(r"(.+?)(\[[\w, -]+\])?", package)
    return (Path(match[1]), match[2] or "") if match else (Path(package), "")


def _written_lock(path: str) -> str:
    """The pins as a RUN line: no file has to lie beside the Dockerfile."""
    lines = "".join(f"    '{line}' \\\n" for line in pins().splitlines() if not line.startswith("#"))
    return f"RUN printf '%s\\n' \\\n{lines}    > {path}\n"


def _about(gpu: str, build: Build, others: Sequence[Build], command: str) -> str:
    """The head: which torch and which GPUs it is for, and what to do with an older driver."""
    told = [
        f"budgetft for {gpu}: {build.name}.",
        f"Kernels: {' '.join(build.architectures)}; each also runs on later minor versions (sm_86 on 8.9).",
        f"The host needs NVIDIA's driver {build.minimum_driver} or newer, and the NVIDIA Container Toolkit.",
    ]
    older = [each.minimum_driver for each in others if numbers(each.minimum_driver) < numbers(build.minimum_driver)]
    told += [f"With a driver from {driver} on: the command below with --driver VERSION." for driver in older[:1]]
    lines = [textwrap.wrap(text, 110, initial_indent="# ", subsequent_indent="#   ", break_on_hyphens=False) for text in told]
    return "\n".join(line for group in [*lines, ["#", f"#   {command}"]] for line in group)
