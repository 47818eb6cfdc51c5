# A site's agent, its commands, and its search.  From the top of the repository:
#     docker build -f deploy/docker/client.Dockerfile -t nexus-client \
#         --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu .
# On arm64 leave TORCH_INDEX out: PyPI's own torch is the CPU build there.  Every package is held against the hashes of
# deploy/lock; PyPI's CUDA build of torch for amd64 is none of them.
ARG PYTHON=docker.io/library/python:3.11-slim-bookworm

# hadolint ignore=DL3006
FROM ${PYTHON} AS build
ARG TORCH_INDEX=
WORKDIR /src
COPY deploy/lock/build.txt deploy/lock/torch-cpu.txt deploy/lock/client.txt deploy/lock/
RUN python3 -m venv /opt/nexus \
 && for list in build torch-cpu client; do \
      test "$list" = torch-cpu && index="${TORCH_INDEX:+--index-url=$TORCH_INDEX}" || index=; \
      /opt/nexus/bin/pip install --no-cache-dir --require-hashes --no-deps --only-binary :all: ${index:+"$index"} \
        -r "deploy/lock/$list.txt" || exit 1; \
    done
COPY pyproject.toml README.md LICENSE ./
COPY common common
COPY server server
COPY client client
RUN /opt/nexus/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

# hadolint ignore=DL3006
FROM ${PYTHON}
# An account with a name: torch asks for it.  And the folders of its volumes.
RUN groupadd --gid 10001 nexus \
 && useradd --no-log-init --uid 10001 --gid 10001 --home-dir /var/lib/nexus --shell /usr/sbin/nologin nexus \
 && install -d -m 750 -o nexus -g nexus /var/lib/nexus /etc/nexus
COPY --from=build /opt/nexus /opt/nexus
ENV PATH=/opt/nexus/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    USER=nexus \
    HOME=/var/lib/nexus
USER 10001:10001
WORKDIR /var/lib/nexus
# `status` answers without an agent too, and says so.
HEALTHCHECK --interval=60s --timeout=30s --start-period=120s \
  CMD ["/bin/sh", "-c", "nexus-client --json status | grep -q '\"running\": true'"]
ENTRYPOINT ["nexus-client"]
