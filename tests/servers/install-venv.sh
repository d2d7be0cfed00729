#!/bin/sh
# install-venv.sh PYTHON: on Debian and Ubuntu the venv module is a package of its own; install it, or say how.
set -eu
PYTHON=$1
PACKAGE=$("$PYTHON" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" -eq 0 ]; then
    apt-get -qq update && apt-get -qq install -y --no-install-recommends "$PACKAGE"
else
    echo "this Python cannot create environments; install it first, on Debian: sudo apt-get install $PACKAGE" >&2
    exit 1
fi
