#!/usr/bin/env bash
# Sets this project up: a virtual environment in .venv with the versions of requirements.txt, mmcv
# with its compiled ops, and the package itself in editable form.
#
#   bash tools/env.sh            (or `make env`; `make demo` and `make test` call it)
#   PYTHON=python3.12 bash tools/env.sh
#
# It does nothing when .venv is up to date, and takes up where it was when an earlier run was
# interrupted. mmcv is compiled once for each version of mmcv, torch and Python (and CUDA
# architecture); the wheel is kept in ${XDG_CACHE_HOME:-~/.cache}/pat_mmdet/wheels for the next
# clone. Where torch sees a GPU, the CUDA ops are compiled too.
#
# pip is steered by its usual settings (PIP_INDEX_URL, pip.conf, ...), mmcv's build by CXX, CFLAGS,
# MAX_JOBS and CUDA_HOME. CUDA_VISIBLE_DEVICES= leaves the CUDA ops out on a machine with a GPU;
# FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST=9.0 compiles them on one without.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

ROOT=$PWD
VENV=$ROOT/.venv
PY=$VENV/bin/python
LOGS=$VENV/logs
PYTHON=${PYTHON:-python3}
MMCV=$(sed -n 's/^mmcv==\([^ ;#]*\).*/\1/p' requirements.txt)

say() { printf '[env] %s\n' "$*"; }
die() {
    printf '[env] error: %s\n' "$*" >&2
    exit 1
}

# ---------------------------------------------------------------------------------------------
# Up to date? The project's path counts too: a copied .venv still points at the original.
fingerprint() {
    { cat requirements.txt setup.py tools/env.sh && printf '%s' "$ROOT"; } |
        { sha256sum 2>/dev/null || shasum -a 256 2>/dev/null || cksum; } | tr -dc '0-9a-f' | cut -c1-16
}
STAMP=$VENV/.stamp-$(fingerprint)
up_to_date() { [ -e "$STAMP" ] && [ -x "$PY" ]; }
if up_to_date; then exit 0; fi

# ---------------------------------------------------------------------------------------------
# Helpers

ticker=
scratch=
cleanup() {
    if [ -n "$ticker" ]; then kill "$ticker" 2>/dev/null || true; fi
    if [ -n "$scratch" ]; then rm -rf "$scratch"; fi
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# A line every 30 seconds with the time and, where the log has it, ninja's "[37/150]". The ticker is
# what runs in the background, not the command: Ctrl-C then reaches pip and the compilers.
tick() { # LOG
    local log=$1 seconds=0 count
    while sleep 1 >/dev/null 2>&1 && kill -0 $$ 2>/dev/null; do
        seconds=$((seconds + 1))
        if [ $((seconds % 30)) -eq 0 ]; then
            count=$(grep -o '^ *\[[0-9]*/[0-9]*\]' "$log" 2>/dev/null | tail -n 1 | tr -d '[] ' || true)
            say "    ... $((seconds / 60)) min $((seconds % 60)) s${count:+, $count files}"
        fi
    done
}

# Runs a command with its output in a log.
logged() { # LOG COMMAND...
    local log=$1 rc=0
    shift
    tick "$log" 7>&- 8>&- &
    ticker=$!
    "$@" >"$log" 2>&1 </dev/null 7>&- 8>&- || rc=$?
    kill "$ticker" 2>/dev/null || true
    wait "$ticker" 2>/dev/null || true
    ticker=
    return "$rc"
}

# One step of the set-up: its name, signs of life, and the end of the log if it fails.
step() { # LOG-NAME TITLE COMMAND...
    local log=$LOGS/$1.log
    say "$2"
    shift 2
    if ! logged "$log" "$@"; then
        tail -n 40 "$log" >&2
        die "that step failed; the whole log is $log. Once the cause is gone, run this again."
    fi
}

pip() { "$PY" -m pip "$@"; }

# Waits until no other process sets up the same thing. Without flock, or on a file system that has no
# locks, it goes on without: files are put in place with mv, so the worst is work done twice.
lock() { # FILE-DESCRIPTOR WHAT
    command -v flock >/dev/null || return 0
    local rc=0
    flock -n -E 99 "$1" 2>/dev/null || rc=$?
    if [ "$rc" -eq 99 ]; then
        say "another process is $2: waiting for it"
        while ! flock -w 30 "$1"; do say "    ... still waiting"; done
    fi
}

# What could make pip look or install elsewhere than in .venv.
unset PYTHONPATH PYTHONHOME PIP_TARGET PIP_PREFIX PIP_ROOT
export PIP_USER=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# ---------------------------------------------------------------------------------------------
# One set-up of this folder at a time

exec 8<tools/env.sh
lock 8 "setting up this folder"
if up_to_date; then exit 0; fi

# ---------------------------------------------------------------------------------------------
# Python and the virtual environment

WANTED='Python 3.10, 3.11 or 3.12 is needed (torch 2.11 ends with 3.9, mmcv 2.1 cannot be built by 3.13)'
python_version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true; }
suits() { case "$(python_version "$1")" in 3.10 | 3.11 | 3.12) ;; *) return 1 ;; esac; }

if [ -x "$PY" ] && pip --version >/dev/null 2>&1; then
    suits "$PY" || die "$WANTED, and .venv has $(python_version "$PY"). Remove .venv, then run this again."
else
    if ! suits "$PYTHON"; then
        found=$(python_version "$PYTHON")
        if [ "$PYTHON" = python3 ]; then
            for other in python3.12 python3.11 python3.10; do
                if suits "$other"; then PYTHON=$other && break; fi
            done
        fi
        suits "$PYTHON" || die "$WANTED, and $PYTHON is ${found:-missing}. Name another one: make env PYTHON=python3.11"
    fi
    say "virtual environment .venv, Python $(python_version "$PYTHON")"
    "$PYTHON" -m venv --clear .venv || {
        rm -rf .venv
        die "$PYTHON -m venv failed. On Debian and Ubuntu: apt-get install python3-venv python3-dev g++"
    }
fi
mkdir -p "$LOGS"
rm -f "$VENV"/.stamp-*

# A package whose installation was interrupted has no RECORD yet, as pip writes that last; but pip would
# take it for installed. Without its metadata it is installed again, over what is there.
for info in "$VENV"/lib/python3.*/site-packages/*.dist-info; do
    if [ -d "$info" ] && [ ! -f "$info/RECORD" ]; then rm -rf "$info"; fi
done

# ---------------------------------------------------------------------------------------------
# Packages from the registry

# torch first: its wheel brings the CUDA libraries, everything later is chosen to go with it. The
# other pins are constraints here, so that its dependencies arrive in their final versions.
torch=()
while read -r pin _; do torch+=("$pin"); done < <(grep -E '^(torch|torchvision)==' requirements.txt)
step torch "${torch[*]} with CUDA libraries (the first time some 2 GB are downloaded)" \
    pip install -c requirements.txt "${torch[@]}"

# The rest without dependencies: mmengine and mmcv ask for opencv-python by name, while we install
# opencv-python-headless, which has the same module and needs no libGL; with both, one overwrites the
# other. It also keeps pip from replacing torch. Whether requirements.txt is complete, `pip check`
# below tells. mmcv is left out: pip would build it without its ops.
grep -vE '^(torch|torchvision|mmcv)==' requirements.txt >"$VENV/requirements-rest.txt"
step packages "the other packages of requirements.txt" \
    pip install --no-deps -r "$VENV/requirements-rest.txt"

# ---------------------------------------------------------------------------------------------
# mmcv

describe() { # a name for what the wheel is built for, then the CUDA architectures
    "$PY" - "$MMCV" <<'END'
import os
import sys
import sysconfig

import torch

arches = ""
if torch.cuda.is_available() or os.environ.get("FORCE_CUDA") == "1":
    found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    arches = os.environ.get("TORCH_CUDA_ARCH_LIST") or ";".join("%d.%d" % a for a in sorted(found))
    if not arches:
        raise SystemExit("FORCE_CUDA=1 without a GPU needs TORCH_CUDA_ARCH_LIST as well, as 8.0 or 9.0")
device = "cuda" + "_".join(arches.replace(";", " ").split()) if arches else "cpu"
python = "cp%d%d" % sys.version_info[:2]
system = sysconfig.get_platform().replace("-", "_").replace(".", "_")
print(f"mmcv{sys.argv[1]}-torch{torch.__version__}-{python}-{system}-{device}")
print(arches)
END
}

works() { # are the compiled ops there, and do they run?
    "$PY" - <<'END'
import torch
from mmcv.ops import nms

boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [1.0, 1.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]])
scores = torch.tensor([0.9, 0.8, 0.7])
for device in ["cpu"] + ["cuda"] * torch.cuda.is_available():
    kept = nms(boxes.to(device), scores.to(device), 0.5)[1].tolist()
    assert kept == [0, 2], f"nms on {device} keeps {kept}, not [0, 2]"
END
}

place() { # WHEEL: install it and try it
    pip install --no-deps --no-index --force-reinstall "$1" && works
}

can_compile() {
    local headers nvcc cuda home
    headers=$("$PY" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
    if ! command -v "${CXX:-c++}" >/dev/null || [ ! -f "$headers/Python.h" ]; then
        die "mmcv must be compiled, and the C++ compiler or Python's headers are missing. On Debian and" \
            "Ubuntu: apt-get install g++ python$(python_version "$PY")-dev"
    fi
    if [ -z "$ARCHES" ]; then return; fi
    TIME="10 to 60"

    # CUDA ops: a toolkit of torch's CUDA version, the machine's or else the registry's. An nvcc in PATH
    # may be a small script that belongs to a toolkit elsewhere, hence the look at the headers.
    export TORCH_CUDA_ARCH_LIST=$ARCHES
    cuda=$("$PY" -c 'import torch; print(torch.version.cuda)')
    nvcc=$(command -v nvcc || true)
    for home in "${CUDA_HOME:-}" "${CUDA_PATH:-}" "${nvcc%/bin/nvcc}" /usr/local/cuda; do
        if [ -f "$home/include/cuda_runtime.h" ]; then
            case "$("$home/bin/nvcc" --version 2>/dev/null || true)" in
                *"release ${cuda%%.*}."*)
                    say "CUDA toolkit for mmcv's ops: $home"
                    export CUDA_HOME=$home
                    return
                    ;;
            esac
        fi
    done
    nvcc_from_registry || die "mmcv's CUDA ops need the CUDA toolkit $cuda. Install it and set CUDA_HOME," \
        "or set up for the CPU alone: CUDA_VISIBLE_DEVICES= make env"
}

# The libraries of that release came with torch; the compiler and the missing headers are added, and a
# folder of the shape that torch expects of a toolkit is put together out of links.
nvcc_from_registry() {
    local release home=$VENV/cuda nvcc library name
    release=$("$PY" -c 'from importlib.metadata import version; print(version("cuda-toolkit"))' \
        2>/dev/null) || return 1
    step cuda "no CUDA ${release%%.*} toolkit here: nvcc $release from the package registry" \
        pip install -c requirements.txt "cuda-toolkit[nvcc,cccl,crt,nvvm]==$release"
    nvcc=$(compgen -G "$VENV/lib/python3.*/site-packages/nvidia/cu*/bin/nvcc" | head -n 1) || return 1
    rm -rf "$home"
    mkdir -p "$home/lib64"
    for name in bin include nvvm; do ln -s "${nvcc%/bin/nvcc}/$name" "$home/$name"; done
    for library in "${nvcc%/bin/nvcc}"/lib/lib*; do
        name=${library##*/}
        ln -s "$library" "$home/lib64/$name"
        case "$name" in *.so.*) ln -sf "$library" "$home/lib64/${name%%.so.*}.so" ;; esac
    done
    export CUDA_HOME=$home PATH=$home/bin:$PATH
}

KEY=
ARCHES=
{ read -r KEY && read -r ARCHES || true; } < <(describe)
[ -n "$KEY" ] || die "torch does not run in .venv, see above"
if [ -z "$ARCHES" ] && command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then
    say "note: there is a GPU that torch cannot use (hidden, or an old driver): mmcv for the CPU"
fi
WHEELS=${XDG_CACHE_HOME:-${HOME:-$VENV}/.cache}/pat_mmdet/wheels
mkdir -p "$WHEELS" 2>/dev/null && [ -w "$WHEELS" ] || WHEELS=$VENV/wheels
mkdir -p "$WHEELS"
cached() { compgen -G "$WHEELS/$KEY/mmcv-*.whl" >/dev/null; }

exec 7>>"$WHEELS/$KEY.lock"
lock 7 "building mmcv"
ready=
if cached; then
    say "mmcv $MMCV from the wheel cache"
    if logged "$LOGS/mmcv.log" place "$WHEELS/$KEY"/mmcv-*.whl; then
        ready=yes
    else
        say "the cached wheel does not work here: building it again"
    fi
fi
if [ -z "$ready" ]; then
    TIME="5 to 20"
    can_compile
    # No build isolation, as it would hide torch and mmcv would come without ops; no pip cache, as that
    # may hold an mmcv built with another torch; no debug symbols: 1 MB instead of 32.
    rm -rf "$WHEELS/$KEY".build.*
    scratch=$(mktemp -d "$WHEELS/$KEY.build.XXXXXX")
    CFLAGS="${CFLAGS:-} -g0 -O2 -w" MMCV_WITH_OPS=1 \
        step mmcv-build "mmcv $MMCV: compiling its ops${ARCHES:+, CUDA $ARCHES too} (once; $TIME minutes)" \
        pip wheel -v --no-build-isolation --no-deps --no-cache-dir --no-binary mmcv \
        --wheel-dir "$scratch" "mmcv==$MMCV"
    step mmcv "mmcv $MMCV: installing and trying it" place "$scratch"/mmcv-*.whl
    # Only a wheel that works goes into the cache, and whole: mv within a file system.
    mkdir -p "$WHEELS/$KEY"
    mv -f "$scratch"/mmcv-*.whl "$WHEELS/$KEY/"
fi
exec 7>&-

# ---------------------------------------------------------------------------------------------
# The project itself

step project "pat_mmdet, editable" pip install --no-deps --no-build-isolation -e .
pip check 2>&1 | grep -vE 'requires opencv-python, which is not installed|^No broken' |
    sed 's/^/[env] warning: /' >&2 || true
touch "$STAMP"
say "ready: $("$PY" --version), in .venv"
