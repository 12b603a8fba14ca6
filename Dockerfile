# SPDX-License-Identifier: Apache-2.0
# The one image: agent, operator, init containers, the CNI executable and the command lines.
#
#   buildah bud --layers -t quay.io/ciliumd/ciliumd:v0.2.0 .        (docker build works as well)
#
# Three stages: what compiles, what the package needs from PyPI, what runs.  Each begins with what changes
# least, so that a change of Python code rebuilds the wheel and the last layer only.

FROM debian:trixie-slim AS tools
ENV DEBIAN_FRONTEND=noninteractive
RUN apt-get update -q \
    && apt-get install -q -y --no-install-recommends \
        bpftool ca-certificates clang-19 gcc libbpf-dev libc6-dev libelf-dev linux-libc-dev llvm-19 \
        python3 python3-dev python3-venv zlib1g-dev \
    && rm -rf /var/lib/apt/lists/*
# Two environments: pip and the build backend stay here, the other one is what goes into the image.
RUN python3 -m venv /opt/build && python3 -m venv --without-pip /opt/ciliumd
WORKDIR /src

FROM tools AS package
# What the lock names and nothing else, by hash.
COPY pyproject.toml uv.lock ./
COPY build/locked.py build/toolchain.py build/
RUN /opt/build/bin/python build/locked.py build \
    && /opt/build/bin/python build/locked.py runtime --python /opt/ciliumd/bin/python
COPY LICENSE README.md THIRD_PARTY.md ./
COPY LICENSES LICENSES
COPY build build
COPY datapath datapath
COPY src src
RUN /opt/build/bin/pip wheel --quiet --no-cache-dir --no-build-isolation --no-deps --wheel-dir /wheels . \
    && /opt/build/bin/pip --python /opt/ciliumd/bin/python install --quiet --no-cache-dir --no-compile \
        --no-index --no-deps /wheels/*.whl
# Bytecode is made here, for code that is read-only where it runs: the agent starts without compiling 5 MB
# of Python.  It is checked by the source's hash, not its time, so the layer is the same in every build.
# Tests, headers and sources of C extensions that packages bring along are never imported.
RUN cd /opt/ciliumd/lib/python3.*/site-packages \
    && find . -type d \( -name tests -o -name test \) -prune -exec rm -rf {} + \
    && find . -type f \( -name '*.c' -o -name '*.h' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.pyi' \) -delete \
    && find . -name '*.so' -exec strip --strip-unneeded {} + \
    && python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash .

FROM debian:trixie-slim
LABEL org.opencontainers.image.title="ciliumd" \
      org.opencontainers.image.description="Networking, policy and load balancing for Kubernetes on eBPF" \
      org.opencontainers.image.licenses="Apache-2.0 AND (GPL-2.0-only OR BSD-2-Clause)"
# libbpf, libelf and zlib are what the extension is linked with; ip, tc, jq, bpftool and tcpdump are what
# people, `cilium sysdump` and `cilium connectivity test` run in the agent's container.  The licences of all
# of them stay in the image.
RUN apt-get update -q \
    && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
        bpftool ca-certificates iproute2 jq libbpf1 libelf1t64 python3 tcpdump zlib1g \
    && rm -rf /var/lib/apt/lists/* /var/cache/debconf/* /var/cache/apt/* /var/cache/ldconfig/* /var/log/* \
        /usr/share/man /usr/share/locale /usr/share/info /usr/share/lintian \
        /usr/lib/python3*/ensurepip /usr/lib/python3*/idlelib /usr/lib/python3*/pydoc_data \
    && find /usr/share/doc -type f ! -name copyright -delete \
    && find /usr/lib/python3* -name __pycache__ -prune -exec rm -rf {} + \
    && python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash /usr/lib/python3*
# The operator's user: libraries ask for its name.
RUN echo 'ciliumd:x:65532:65532:ciliumd:/nonexistent:/usr/sbin/nologin' >>/etc/passwd \
    && echo 'ciliumd:x:65532:' >>/etc/group
COPY --from=package /opt/ciliumd /opt/ciliumd
# No __pycache__ is written at run time: the root file system of every container of the chart is read-only.
ENV PATH=/opt/ciliumd/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# Root, because what is done needs capabilities in the node's namespaces; which ones is the chart's to say.
# The agent handles signals and has no children to reap, so it is process 1 itself.
CMD ["ciliumd", "agent"]
