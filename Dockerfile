# internvl_chat with CUDA, DeepSpeed and flash-attn, for docker, podman, Kubernetes and enroot/pyxis (docs/launch.md).
#   docker build -t internvl_chat .
# A -devel image, because DeepSpeed (offloading) and Triton compile kernels on the machine where they run.
FROM pytorch/pytorch:2.8.0-cuda12.8-cudnn9-devel

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1

WORKDIR /opt/internvl_chat

# Packages first: they change seldom, and then this layer is kept. The image's torch stays. flash-attn is built against it
# (or its finished wheel is taken), so without build isolation.
COPY pyproject.toml LICENSE README.md ./
COPY internvl_chat/__init__.py internvl_chat/
RUN python -c "import torch; print('torch==' + torch.__version__.split('+')[0])" > /opt/constraints.txt \
 && pip install --constraint /opt/constraints.txt 'setuptools>=77' wheel ninja packaging psutil \
 && pip install --constraint /opt/constraints.txt --no-build-isolation -e '.[gpu,quant,parquet,remote]'

COPY . .

# Fails here, and not on a cluster, if anything does not fit together.
RUN internvl models > /dev/null && python -c "import deepspeed, flash_attn"

CMD ["internvl", "--help"]
