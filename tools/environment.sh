# shellcheck shell=bash disable=SC1091
# Make and activate .venv with the given requirements file; sourced by the other scripts.
# Nothing is installed again while the requirements stay the same.

requirements=$1
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: adatad_ds needs Python 3.11 or newer; python3 is $(python3 --version)" >&2
    exit 1
}
[[ -d .venv ]] || python3 -m venv .venv
source .venv/bin/activate
wanted=$(cat requirements*.txt | sha256sum | cut -d' ' -f1)-$requirements
if ! grep -qxF "$wanted" .venv/installed 2>/dev/null; then
    echo "installing $requirements into .venv (PyTorch is large: a few minutes at first)"
    python -m pip install --quiet --disable-pip-version-check --requirement "$requirements"
    echo "$wanted" >>.venv/installed
fi
export DS_BUILD_OPS=0 # nothing is compiled
