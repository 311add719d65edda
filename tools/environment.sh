# shellcheck shell=bash disable=SC1091
# Make and activate an environment with the given requirements file; sourced by the other scripts.
# The second argument says which versions: `known` (.venv, those of constraints.txt), `newest` (.venv-newest) or
# `lowest` (.venv-lowest, the floors of requirements.txt). Nothing is installed again while these files stay the same.

requirements=$1 versions=${2:-known}
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: adatad_ds needs Python 3.11 or newer; python3 is $(python3 --version)" >&2
    exit 1
}
environment=.venv
[[ $versions == known ]] || environment=.venv-$versions
[[ -d $environment ]] || python3 -m venv "$environment"
source "$environment/bin/activate"
wanted=$(cat requirements*.txt constraints.txt | sha256sum | cut -d' ' -f1)-$requirements
if ! grep -qxF "$wanted" "$environment/installed" 2>/dev/null; then
    echo "installing $requirements into $environment (PyTorch is large: a few minutes at first)"
    case $versions in
        known) chosen=(--constraint constraints.txt) ;;
        newest) chosen=(--upgrade --upgrade-strategy eager) ;;
        lowest)
            sed -nE 's/^([a-z]+)>=([0-9.]+).*/\1==\2/p' requirements.txt >"$environment/lowest.txt"
            chosen=(--constraint "$environment/lowest.txt")
            ;;
        *)
            echo "error: versions must be known, newest or lowest, not $versions" >&2
            exit 1
            ;;
    esac
    python -m pip install --quiet --disable-pip-version-check --requirement "$requirements" "${chosen[@]}"
    python -m pip install --quiet --disable-pip-version-check --no-deps --editable . # the command adatad-ds
    echo "$wanted" >>"$environment/installed"
fi
export DS_BUILD_OPS=0 # nothing is compiled
