# The image: one executable for proxy, agent and load balancer, built by `deno task build --target linux-x64,linux-arm64`, and the system
# files that it needs. Nothing is compiled here: the image contains the verified executable.
#   docker buildx build --platform linux/amd64,linux/arm64 --tag reverse-http .

# glibc and certificate authorities, without a shell
ARG BASE=gcr.io/distroless/base-nossl-debian12:nonroot
# set by the builder for the target platform; a default here would override it
ARG TARGETARCH

FROM scratch AS amd64
COPY dist/linux-x64/reverse-http dist/linux-x64/reverse-http.node /

FROM scratch AS arm64
COPY dist/linux-arm64/reverse-http dist/linux-arm64/reverse-http.node /

FROM ${TARGETARCH} AS executable

FROM ${BASE}
ARG VERSION=unknown
ARG COMMIT=unknown
ARG DATE=unknown
LABEL org.opencontainers.image.title="reverse-http" \
  org.opencontainers.image.description="A reverse HTTP proxy over QUIC: proxy, agent and load balancer" \
  org.opencontainers.image.licenses="Apache-2.0" \
  org.opencontainers.image.url="https://github.com/reverse-http/reverse-http" \
  org.opencontainers.image.source="https://github.com/reverse-http/reverse-http" \
  org.opencontainers.image.documentation="https://github.com/reverse-http/reverse-http#readme" \
  org.opencontainers.image.version="${VERSION}" \
  org.opencontainers.image.revision="${COMMIT}" \
  org.opencontainers.image.created="${DATE}"
# the native engine is loaded from beside the executable, so no folder must be writable
COPY --from=executable /reverse-http /reverse-http.node /
COPY LICENSE /usr/share/doc/reverse-http/
# for the self-signed certificate; mount a volume here to keep it
COPY --chown=65532:65532 deploy/image/state /var/lib/reverse-http
ENV STATE_DIRECTORY=/var/lib/reverse-http
USER 65532:65532
EXPOSE 4242/udp 4242/tcp 3128/tcp 3129/tcp
STOPSIGNAL SIGTERM
ENTRYPOINT ["/reverse-http"]
# with REVERSE_HTTP_ADMIN_LISTEN_ADDRESS=:9090 set, container engines can check the health: ["/reverse-http", "healthcheck"]
