#!/usr/bin/env bash
# Make what compose.yaml needs and nobody else may know, once: deploy/.env and deploy/secrets/. What is there stays.
set -euo pipefail
cd "${1:-$(dirname "$0")}"
umask 077
mkdir -p secrets
for name in jwt-secret operator-token ledger-key; do
    [ -e "secrets/$name" ] || openssl rand -hex 32 > "secrets/$name"
    chmod 644 "secrets/$name" # read in the container by another user; the folder keeps everybody else out
done
[ -e .env ] || for name in POSTGRES_PASSWORD REDIS_PASSWORD RABBITMQ_PASSWORD S3_PASSWORD GRAFANA_PASSWORD; do
    echo "$name=$(openssl rand -hex 16)"
done > .env
