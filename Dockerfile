# syntax=docker/dockerfile:1
FROM rust:1.94-bookworm AS builder
WORKDIR /src
# Queries are checked against the committed .sqlx, so the build needs no database.
ENV SQLX_OFFLINE=true
COPY . .
# The registry and the compiled dependencies stay in the builder's cache from one build to the next.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin reeve && \
    cp target/release/reeve /usr/local/bin/reeve

FROM debian:bookworm-slim
RUN apt-get update && \
    apt-get install -y --no-install-recommends ca-certificates && \
    rm -rf /var/lib/apt/lists/* && \
    useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin reeve
COPY --from=builder /usr/local/bin/reeve /usr/local/bin/reeve
USER 10001
ENV REEVE_LISTEN=0.0.0.0:7380 \
    REEVE_URL=http://127.0.0.1:7380 \
    REEVE_LOG_FORMAT=json
EXPOSE 7380
# Asks /readyz at REEVE_URL: is the database there, and migrated?
HEALTHCHECK --interval=5s --timeout=3s --start-period=20s --retries=6 CMD ["reeve", "health"]
ENTRYPOINT ["reeve"]
CMD ["serve"]
