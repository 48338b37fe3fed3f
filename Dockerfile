# The production image: the operator, which is also the agent in every node's pod, and the kubectl
# plug-in. Build it with:
#
#   docker build -t ghcr.io/bsn-operator/bsn-operator:0.1.0 .

# The same Debian release as the final image: both must have the same C library.
FROM rust:1.95.0-slim-bookworm AS build
WORKDIR /src
COPY . .
# The caches speed up the next build on the same machine; the binaries are copied out of them.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --package bsn-operator --bin bsn-operator --bin kubectl-bsn \
    && install -D -t /out target/release/bsn-operator target/release/kubectl-bsn

# Only the C library: no shell, no package manager. The tag `nonroot` runs as user 65532.
FROM gcr.io/distroless/cc-debian12:nonroot
LABEL org.opencontainers.image.title="bsn-operator" \
      org.opencontainers.image.description="Kubernetes operator for permissioned blockchain networks" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /out/bsn-operator /out/kubectl-bsn /usr/bin/
# By number: the kubelet can prove that a number is not root, of a name it cannot.
USER 65532:65532
# Port of /livez, /readyz and /metrics.
EXPOSE 8080
ENTRYPOINT ["/usr/bin/bsn-operator"]
