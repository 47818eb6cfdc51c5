# The consortium's server: no torch and no model.  From the top of the repository:
#     docker build -f deploy/docker/server.Dockerfile -t nexus-server .
# The same file serves amd64 and arm64.  Every package is held against the hashes of deploy/lock.
ARG PYTHON=docker.io/library/python:3.11-slim-bookworm

# hadolint ignore=DL3006
FROM ${PYTHON} AS build
WORKDIR /src
COPY deploy/lock/build.txt deploy/lock/server.txt deploy/lock/
RUN python3 -m venv /opt/nexus \
 && for list in build server; do \
      /opt/nexus/bin/pip install --no-cache-dir --require-hashes --no-deps --only-binary :all: -r "deploy/lock/$list.txt" \
      || exit 1; \
    done
COPY pyproject.toml README.md LICENSE ./
COPY common common
COPY client client
COPY server server
RUN /opt/nexus/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

# hadolint ignore=DL3006
FROM ${PYTHON}
# An account with a name, and the folders of its volumes.
RUN groupadd --gid 10001 nexus \
 && useradd --no-log-init --uid 10001 --gid 10001 --home-dir /var/lib/nexus --shell /usr/sbin/nologin nexus \
 && install -d -m 750 -o nexus -g nexus /var/lib/nexus
COPY --from=build /opt/nexus /opt/nexus
ENV PATH=/opt/nexus/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    USER=nexus \
    HOME=/var/lib/nexus
USER 10001:10001
WORKDIR /var/lib/nexus
EXPOSE 8443 8444
# The command asks the running server over its socket.
HEALTHCHECK --interval=60s --timeout=30s --start-period=60s CMD ["nexus-server", "status"]
ENTRYPOINT ["nexus-server"]
