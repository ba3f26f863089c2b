#!/bin/bash
# The steps of the OpenPI image, shared by Dockerfile and openpi.def. One argument: system, dependencies, readable or check.
set -euo pipefail

case "${1:-}" in
system)
    # libgl1 and libglib2.0-0: OpenCV; libegl1: rendering without a screen; git and git-lfs: dependencies by commit;
    # ca-certificates: W&B and every other https; build tools: packages without a wheel.
    export DEBIAN_FRONTEND=noninteractive
    apt-get update
    apt-get install --yes --no-install-recommends \
        build-essential ca-certificates clang curl git git-lfs libegl1 libgl1 libglib2.0-0 linux-headers-generic python3-pip rsync
    rm -rf /var/lib/apt/lists/*
    python3 -m pip install --no-cache-dir uv==0.5.1
    # The site binds its staging here.
    mkdir -p /staging
    ;;
dependencies)
    # Large files of dependencies' repositories are test data: they are not fetched.
    export GIT_LFS_SKIP_SMUDGE=1 UV_CACHE_DIR=/tmp/uv
    uv python install 3.11
    uv sync --frozen --no-dev --no-install-project --python 3.11
    # The agent reads memory and processes with it, and does without where it is missing.
    uv pip install --python /.venv/bin/python psutil==7.2.2
    # OpenPI's PyTorch models need their own copies of three files of transformers.
    cp -r src/openpi/models_pytorch/transformers_replace/. /.venv/lib/python3.11/site-packages/transformers/
    rm -rf /tmp/uv
    ;;
readable)
    # Jobs run as whichever user the pool gives.
    chmod -R a+rX /app /.venv /opt/python
    ;;
check)
    # As an ordinary user, without a home: what a job meets.
    [ "$(id -u)" -ne 0 ] || { echo "install.sh check must run as an ordinary user" >&2; exit 1; }
    HOME=/nonexistent python3 - <<'PYTHON'
import cv2
import jax
import openpi.training.config
import orbax.checkpoint
import psutil
import sentencepiece
import ssl
import torch

assert ssl.create_default_context().get_ca_certs(), "no CA certificates"
print("jax", jax.__version__, "torch", torch.__version__, "psutil", psutil.__version__, "opencv", cv2.__version__)
PYTHON
    ;;
*)
    echo "usage: install.sh system|dependencies|readable|check" >&2
    exit 2
    ;;
esac
