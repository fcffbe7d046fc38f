#!/usr/bin/env bash
# Trains in several processes: dist_train.sh CONFIG GPUS [flags of tools/train.py]
# Over several machines, set NNODES, NODE_RANK and MASTER_ADDR on each. Without a GPU the processes
# run on the CPU.
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: $0 CONFIG GPUS [flags of tools/train.py]" >&2
    exit 2
fi
config=$1 gpus=$2
shift 2
exec "${PYTHON:-python}" -m pat_mmdet.utils.launch \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" --nproc_per_node="$gpus" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
    "$(dirname "$0")/train.py" "$config" --launcher pytorch "$@"
