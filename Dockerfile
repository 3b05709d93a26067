# Two images from one file:
#
#     docker build --target cpu -t studio:cpu .
#     docker build --target cuda -t studio:cuda .
#
#     docker run -p 7860:7860 studio:cpu
#     docker run --gpus all -p 7860:7860 -v weights:/weights studio:cuda python3 -m studio weights fetch --to /weights
#     docker run --gpus all -p 7860:7860 -v weights:/weights -e RECONSTUDIO_CHECKPOINT=/weights studio:cuda
#
# Without RECONSTUDIO_CHECKPOINT the embedded networks are used.

FROM nvidia/cuda:12.1.1-cudnn8-devel-ubuntu22.04 AS cuda

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV DEBIAN_FRONTEND=noninteractive \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1 \
    TORCH_CUDA_ARCH_LIST="7.5;8.0;8.6;8.9;9.0" \
    NUMBA_CACHE_DIR=/var/cache/studio \
    GRADIO_SERVER_NAME=0.0.0.0

# git fetches nvdiffrast, gcc and the headers of Python compile what Triton and nvdiffrast start their kernels with.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates curl gcc g++ git python3 python3-dev python3-pip \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/studio
COPY requirements.txt ./
# torch comes first and alone: it decides which CUDA everything after it is built for.
RUN grep -E '^(torch|torchvision)==' requirements.txt > torch.txt \
    && python3 -m pip install -r torch.txt \
    && rm torch.txt
RUN python3 -m pip install -r requirements.txt "gradio>=6,<7"

RUN useradd --create-home --uid 1000 studio \
    && mkdir /weights /var/cache/studio \
    && chown studio /weights /var/cache/studio
COPY --chown=studio . .
USER studio
# Kernels for the CPU are compiled now, not at the first start.
RUN python3 -c "from studio.engine import warm_up; warm_up()"

VOLUME /weights
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=300s --retries=3 \
    CMD curl --fail --silent http://127.0.0.1:7860/ > /dev/null || exit 1
CMD ["python3", "app.py"]


FROM python:3.11-slim-bookworm AS cpu

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1 \
    OMP_WAIT_POLICY=PASSIVE \
    NUMBA_CACHE_DIR=/var/cache/studio \
    GRADIO_SERVER_NAME=0.0.0.0

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends curl libgomp1 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/studio
COPY requirements-cpu.txt ./
RUN grep -E '^torch==' requirements-cpu.txt > torch.txt \
    && python3 -m pip install -r torch.txt \
    && rm torch.txt
RUN python3 -m pip install -r requirements-cpu.txt

RUN useradd --create-home --uid 1000 studio \
    && mkdir /weights /var/cache/studio \
    && chown studio /weights /var/cache/studio
COPY --chown=studio . .
USER studio
RUN python3 -c "from studio.engine import warm_up; warm_up()"

VOLUME /weights
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s --retries=3 \
    CMD curl --fail --silent http://127.0.0.1:7860/ > /dev/null || exit 1
CMD ["python3", "app.py"]
