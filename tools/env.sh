#!/usr/bin/env bash
# Set up .venv: the versions of requirements.txt, and this package in editable form.
#
#   bash tools/env.sh            (or `make env`; `make demo` and `make test` call it)
#   PYTHON=python3.12 bash tools/env.sh
#   MMCV=full bash tools/env.sh  compile the operators that mmcv-lite lacks (5 to 20 minutes)
#
# It does nothing when .venv is up to date. pip is steered by its usual settings (PIP_INDEX_URL,
# pip.conf, ...), the build of mmcv by its own (CXX, MAX_JOBS, CUDA_HOME, FORCE_CUDA, ...).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PY=.venv/bin/python
PYTHON=${PYTHON:-python3}
MMCV=${MMCV:-}
MMCV_VERSION=$(sed -n 's/^mmcv-lite==\([^ ;]*\).*/\1/p' requirements.txt)

say() { printf '[env] %s\n' "$*"; }
die() {
    say "error: $*" >&2
    exit 1
}

# The path of the project counts too: a copied .venv still points at the original.
STAMP=.venv/.stamp-$({ cat requirements.txt setup.py tools/env.sh && pwd; } | cksum | tr ' ' -)
compiled() { compgen -G '.venv/lib/python3.*/site-packages/mmcv/_ext.*.so' >/dev/null; }
up_to_date() { [ -e "$STAMP" ] && [ -x "$PY" ] && { [ "$MMCV" != full ] || compiled; }; }
if up_to_date; then exit 0; fi

# One set-up of a folder at a time, where the file system has locks.
exec 8<tools/env.sh
if command -v flock >/dev/null && ! flock -n 8; then
    say "another process may be setting up this folder: waiting for it"
    flock 8 || true
    if up_to_date; then exit 0; fi
fi

# What could make pip look or install elsewhere than in .venv.
unset PYTHONPATH PYTHONHOME PIP_TARGET PIP_PREFIX PIP_ROOT
export PIP_USER=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1
pip() { "$PY" -m pip --quiet --quiet "$@"; } # errors only

if "$PY" -m pip --version >/dev/null 2>&1; then PYTHON=$PY; fi
version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) ||
    version=missing
newest=3.13
if [ "$MMCV" = full ]; then newest=3.12; fi # mmcv's setup.py fails in 3.13
case $version in
    3.10 | 3.11 | 3.12 | "$newest") ;;
    *) die "Python 3.10 to $newest is needed, $PYTHON is $version. Name one: make env PYTHON=python3.11" ;;
esac
if [ "$PYTHON" != "$PY" ]; then
    say "virtual environment .venv, Python $version"
    "$PYTHON" -m venv --clear .venv || {
        rm -rf .venv
        die "$PYTHON -m venv failed. On Debian and Ubuntu: apt-get install python3-venv"
    }
fi
rm -f .venv/.stamp-*
site=.venv/lib/python$version/site-packages

# pip writes RECORD last. A package without it was interrupted, but pip would take it for installed.
for info in "$site"/*.dist-info; do
    if [ ! -f "$info/RECORD" ]; then rm -rf "$info"; fi
done

# torch first, with its CUDA libraries; the other pins are constraints for what it needs.
say "torch (with CUDA libraries; the first time 2 GB are downloaded)"
grep -E '^(torch|torchvision)==' requirements.txt >.venv/torch.txt
pip install -c requirements.txt -r .venv/torch.txt

# The rest without dependencies, as OpenMMLab asks for opencv-python by name, and
# opencv-python-headless needs no libGL. mmcv and mmcv-lite fill the same folder, so there is either.
say "the other packages of requirements.txt"
apart='^(torch|torchvision)=='
if compiled; then MMCV=full; fi
if [ "$MMCV" = full ]; then apart='^(torch|torchvision|mmcv-lite)=='; fi
grep -vE "$apart" requirements.txt >.venv/rest.txt
pip install --no-deps -r .venv/rest.txt
pip install --no-deps --no-build-isolation -e .

# Programs that do not import pat_mmdet, as MMDetection's own tools, find mmcv's operators as well:
# Python runs this line when it starts.
finder="u.spec_from_file_location('mmcv_ops', '$PWD/pat_mmdet/utils/mmcv_ops.py')"
run="m = u.module_from_spec(s); s.loader.exec_module(m); m.provide_mmcv_ops()"
echo "import importlib.util as u; s = $finder; $run" >"$site/mmcv_ops.pth"

if [ "$MMCV" = full ] && ! { compiled && "$PY" -c 'import torch, mmcv._ext' 2>/dev/null; }; then
    say "mmcv $MMCV_VERSION: compiling its operators (5 to 20 minutes, with CUDA up to an hour)"
    pip uninstall -y mmcv-lite mmcv
    pip install ninja psutil
    # Without isolation, so that the build sees torch; without a cache, which may be for another one.
    PATH=$PWD/.venv/bin:$PATH CFLAGS="${CFLAGS:-} -g0 -w" MMCV_WITH_OPS=1 pip install --no-deps \
        --no-build-isolation --no-cache-dir --no-binary mmcv "mmcv==$MMCV_VERSION" ||
        die "this needs a C++ compiler, Python's headers and, with a GPU, torch's version of CUDA"
fi

"$PY" -m pip check | grep -vE 'requires opencv-python, which is not installed|^No broken' |
    sed 's/^/[env] pip check: /' || true
touch "$STAMP"
say "ready: $("$PY" --version), in .venv"
