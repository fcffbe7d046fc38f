#!/usr/bin/env bash
# Tests in several processes: dist_test.sh CONFIG CHECKPOINT GPUS [flags of tools/test.py]
# Over several machines, set NNODES, NODE_RANK and MASTER_ADDR on each. Without a GPU the processes
# run on the CPU.
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "usage: $0 CONFIG CHECKPOINT GPUS [flags of tools/test.py]" >&2
    exit 2
fi
config=$1 checkpoint=$2 gpus=$3
shift 3
exec "${PYTHON:-python}" -m pat_mmdet.utils.launch \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" --nproc_per_node="$gpus" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
    "$(dirname "$0")/test.py" "$config" "$checkpoint" --launcher pytorch "$@"
