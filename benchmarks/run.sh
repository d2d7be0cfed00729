#!/bin/sh
# run.sh [--quick] [--json]: run every benchmark. Exit status 1 if one could not run; a missed target is only said.
set -u

cd "$(dirname "$0")"
PYTHON=${PYTHON:-../.venv/bin/python}
status=0
sh proxies.sh || status=1
for benchmark in import_time pick scale overhead hop slow_server discovery; do
    "$PYTHON" "$benchmark.py" "$@" || { echo "run.sh: $benchmark did not run to its end" >&2; status=1; }
done
exit $status
