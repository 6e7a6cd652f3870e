#!/bin/sh
# Run an installer with the builder's own package index and certificates, where it was given any
# (build secrets, of which nothing stays in the image).
set -eu
secrets=/run/secrets
# NVIDIA's images constrain pip to what they were tested with. Here uv.lock decides, and what must
# stay as it is, torch above all, is not among what is installed.
unset PIP_CONSTRAINT
if [ -f "$secrets/pip.conf" ]; then export PIP_CONFIG_FILE="$secrets/pip.conf"; fi
if [ -f "$secrets/uv.toml" ]; then export UV_CONFIG_FILE="$secrets/uv.toml"; fi
if [ -f "$secrets/ca.pem" ]; then export SSL_CERT_FILE="$secrets/ca.pem" PIP_CERT="$secrets/ca.pem"; fi
exec "$@"
