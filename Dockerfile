# The container image: docs/image.md. Needs BuildKit (docker), podman or buildah.
#
# The base is pinned here and nowhere else. The digest is a placeholder: it names no image, so a
# build without a digest of your own ends at once. docs/image.md says how to find it.
ARG BASE_IMAGE=nvcr.io/nvidia/pytorch:26.06-py3@sha256:0000000000000000000000000000000000000000000000000000000000000000

# --- what is to be installed: the locked packages less those that the base must keep ----------------
FROM ${BASE_IMAGE} AS lists
WORKDIR /build
COPY pyproject.toml uv.lock tools/image_install.sh tools/image_requirements.py ./
# A folder of its own: no package of the base changes.
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=ca.pem \
    python3 image_requirements.py uv >uv.txt \
    && ./image_install.sh python3 -m pip install --no-cache-dir --no-deps --require-hashes \
        --no-compile --target /build/uv --requirement uv.txt \
    && python3 image_requirements.py lists --uv /build/uv/bin/uv

# --- the project itself --------------------------------------------------------------------------------
FROM lists AS wheel
COPY LICENSE README.md ./
COPY examples examples
COPY tst_megatron tst_megatron
RUN --mount=type=cache,id=tst-megatron-uv,target=/var/cache/uv \
    --mount=type=secret,id=uv.toml --mount=type=secret,id=ca.pem \
    ./image_install.sh uv/bin/uv build --wheel --python python3 --no-python-downloads \
        --build-constraints build.txt --require-hashes --cache-dir /var/cache/uv --out-dir wheel

# --- the image -----------------------------------------------------------------------------------------
FROM ${BASE_IMAGE}

# It binds ranks to the processors beside their GPU. Of the base's distribution, whatever version.
# hadolint ignore=DL3008
RUN command -v numactl >/dev/null || { \
        apt-get update && apt-get install --no-install-recommends -y numactl \
        && rm -rf /var/lib/apt/lists/*; }

# Everybody's home, and not /tmp: where that is the host's, others could leave programs there that
# this user's libraries would load.
RUN mkdir -m 1777 /home/tst

# An environment that sees the base's packages and changes none of them. uv alone is mounted, so
# another lock makes neither this nor Apex again.
ENV PATH=/opt/tst_megatron/venv/bin:$PATH
RUN --mount=type=bind,from=lists,source=/build/uv,target=/run/uv \
    /run/uv/bin/uv venv --no-cache --no-python-downloads --system-site-packages \
        --python "$(command -v python3)" /opt/tst_megatron/venv

# 1 compiles Apex's one extension, where the base has none; 0 leaves it out. The list of GPUs has a
# name of its own: the base may set TORCH_CUDA_ARCH_LIST, and a variable of the base beats an ARG.
ARG BUILD_APEX=0
ARG APEX_COMMIT=6424da3b4faa6c8f062da4a48c424fff3f02d42d
ARG APEX_CUDA_ARCH_LIST="9.0 10.0"
# What decides whether a layer is built again is copied, not mounted: podman and buildah look at a
# mount's name and not at what is in it (github.com/containers/podman/issues/17119). The mode is
# for a checkout that its owner alone can read.
COPY --chmod=0755 tools/image_apex.py /opt/tst_megatron/tools/
RUN if [ "$BUILD_APEX" = 1 ] \
        && ! python -c "import torch, fused_weight_gradient_mlp_cuda" 2>/dev/null; then \
        TORCH_CUDA_ARCH_LIST="$APEX_CUDA_ARCH_LIST" \
            python /opt/tst_megatron/tools/image_apex.py "$APEX_COMMIT" \
            "$(python -c 'import sysconfig; print(sysconfig.get_path("platlib"))')"; \
    fi

# Compiled to bytecode, since those who run it cannot write here.
COPY --from=lists /build/dependencies.txt /build/build.txt /opt/tst_megatron/
RUN --mount=type=bind,from=lists,source=/build,target=/run/build \
    --mount=type=cache,id=tst-megatron-uv,target=/var/cache/uv \
    --mount=type=secret,id=uv.toml --mount=type=secret,id=ca.pem \
    /run/build/image_install.sh /run/build/uv/bin/uv pip install --no-deps --require-hashes \
        --compile-bytecode --link-mode copy --cache-dir /var/cache/uv \
        --build-constraints /opt/tst_megatron/build.txt \
        --python /opt/tst_megatron/venv --requirement /opt/tst_megatron/dependencies.txt \
    && rm -f /tmp/uv-*.lock

# Any user: a home that all can write to, and a name for one who is in no list of users. LNAME is
# asked after LOGNAME and USER, so it hides nobody. No network, and nothing of the host's home.
ENV HOME=/home/tst \
    LNAME=tst \
    PYTHONNOUSERSITE=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HUB_OFFLINE=1 \
    HF_DATASETS_OFFLINE=1 \
    TRANSFORMERS_OFFLINE=1 \
    HF_HUB_DISABLE_TELEMETRY=1

# From here on everything changes with each commit. tools/image_build.sh fills these in.
ARG BASE_IMAGE
ARG REVISION=unknown
ARG VERSION=unknown
ARG CREATED=unknown
ARG LOCK_SHA256
ARG SOURCE=unknown
COPY --from=wheel /build/wheel/*.whl /opt/tst_megatron/wheel/
COPY --chmod=0755 tools/image_record.py tools/image_requirements.py /opt/tst_megatron/tools/
RUN --mount=type=bind,from=lists,source=/build,target=/run/build \
    /run/build/uv/bin/uv pip install --offline --no-cache --no-deps --compile-bytecode \
        --python /opt/tst_megatron/venv /opt/tst_megatron/wheel/*.whl \
    && python /opt/tst_megatron/tools/image_record.py write /opt/tst_megatron/image.json \
        --base /run/build/base.json --lock /run/build/uv.lock --base-image "$BASE_IMAGE" \
        --revision "$REVISION" --version "$VERSION" --created "$CREATED" \
        --lock-sha256 "$LOCK_SHA256"
LABEL org.opencontainers.image.title="tst-megatron" \
    org.opencontainers.image.description="MoE pre-training on Megatron-Core with Token-Superposition Training" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.base.name="${BASE_IMAGE}" \
    org.opencontainers.image.source="${SOURCE}" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.created="${CREATED}" \
    tst-megatron.lock-sha256="${LOCK_SHA256}"

# As a user who is in no list: torch as it was, the locked versions, Megatron's imports.
USER 65532:65532
WORKDIR /tmp
RUN python /opt/tst_megatron/tools/image_record.py check /opt/tst_megatron/image.json \
    && tst-megatron --version \
    # What it left in its home would be in every other user's way. No deeper: a folder of the
    # base's that this user cannot read is no failure.
    && find /tmp /home/tst -mindepth 1 -maxdepth 1 -user 65532 -exec rm -rf {} +
CMD ["tst-megatron", "doctor"]
