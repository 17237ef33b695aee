# docker build -t vae-service:cpu .                             CPU, the default
# docker build --build-arg TORCH=cuda -t vae-service:cuda .     NVIDIA GPU: torch with its CUDA libraries, several GB
#
# Needs BuildKit (the default builder since Docker 23). TORCH_INDEX_URL names another index for torch.

# ---- what the service depends on: rebuilt when pyproject.toml or constraints.txt change, not when the code does
FROM python:3.11-slim AS dependencies
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# An environment without a pip of its own: nothing in the final image installs anything.
RUN python -m venv --without-pip /venv
WORKDIR /src

ARG TORCH=cpu
ARG TORCH_INDEX_URL=
COPY constraints.txt ./
COPY .ci/install-torch .ci/
RUN --mount=type=cache,target=/root/.cache/pip \
    .ci/install-torch pip --python /venv/bin/python

COPY pyproject.toml ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
      > requirements.txt \
 && pip --python /venv/bin/python install --quiet -c constraints.txt -r requirements.txt \
 # C++ headers, build tools and the packages' own tests: nothing at run time reads them
 && cd /venv/lib/python3.11/site-packages \
 && rm -rf torch/include torch/share torch/test \
 && find torch/bin -mindepth 1 ! -name torch_shm_manager -delete \
 && find sympy numpy networkx mpmath -type d -name tests -prune -exec rm -rf {} +

# ---- the service itself, as files to lay over that environment
FROM dependencies AS service
COPY README.md LICENSE ./
COPY model model
COPY app app
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /venv/bin/python install --quiet --no-deps --prefix /service .

# ---- the image
FROM python:3.11-slim
LABEL org.opencontainers.image.title="vae-service" \
      org.opencontainers.image.description="A variational autoencoder as an HTTP service" \
      org.opencontainers.image.licenses="MIT"

# A fixed, unprivileged user, so that mounted files can be given to it. The root file system may be read-only:
# bytecode is compiled at build time, and the only folder ever written to is /tmp.
RUN groupadd --gid 10001 vae && useradd --uid 10001 --gid vae --home-dir /tmp --no-create-home --shell /usr/sbin/nologin vae \
 && python -m compileall -q -x '/(test|idlelib|lib2to3|site-packages)/' /usr/local/lib/python3.11
COPY --from=dependencies /venv /venv
COPY --from=service /service /venv

ENV PATH=/venv/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    VAE_HOST=0.0.0.0 \
    VAE_PORT=8000
USER 10001:10001
WORKDIR /
EXPOSE 8000
STOPSIGNAL SIGTERM
# Ready means that requests are answered; past the host's proxy settings, if it has any.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-I", "-S", "-c", \
  "import os, sys, urllib.request as u; sys.tracebacklimit = 0; u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:' + os.environ['VAE_PORT'] + '/readyz', timeout=4)"]
ENTRYPOINT ["vae"]
CMD ["serve"]
