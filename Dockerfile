# budgetft for rtx4090: torch 2.14.1 with CUDA 13.0.
# Kernels: sm_75 sm_80 sm_86 sm_90 sm_100 sm_120; each also runs on later minor versions (sm_86 on 8.9).
# The host needs NVIDIA's driver 580.65 or newer, and the NVIDIA Container Toolkit.
# With a driver from 525.60 on: the command below with --driver VERSION.
#
#   budgetft doctor --gpu rtx4090 --dockerfile Dockerfile
#   docker build -t budgetft .
#   docker run --rm --gpus all --ipc=host -v "$PWD:/work" -v budgetft-cache:/cache budgetft doctor
#
# /work is where you are; /cache keeps trials, downloaded models and converted data. With --user "$(id -u):$(id -g)" the files
# that are written belong to you.
FROM python:3.11-slim

# Triton, a part of torch, compiles at run time. Any user may write to /cache.
# hadolint ignore=DL3008
RUN apt-get update && \
    apt-get install -y --no-install-recommends gcc libc6-dev && \
    rm -rf /var/lib/apt/lists/* && \
    mkdir -m 1777 /cache

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN pip install torch==2.14.1 torchvision==0.29.1

COPY pyproject.toml README.md LICENSE /opt/budgetft/
COPY profiles /opt/budgetft/profiles
COPY budgetft /opt/budgetft/budgetft
RUN pip install --constraint /opt/budgetft/profiles/lock.txt '/opt/budgetft[nf4]'

# torch asks for the user's name, and --user has none.
ENV HOME=/cache USER=budgetft NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /work
ENTRYPOINT ["budgetft"]
CMD ["--help"]
