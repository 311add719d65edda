# shellcheck shell=bash disable=SC1091
# Make and activate an environment with the given requirements file; sourced by the other scripts.
# The second argument says which versions: `known` (.venv, those of constraints.txt), `newest` (.venv-newest) or
# `lowest` (.venv-lowest, the floors of requirements.txt). Nothing is installed again while these files stay the same;
# an environment that is broken, was moved or is half made is made anew. uv installs, where it is there, else pip.

requirements=$1 versions=${2:-known}
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: adatad_ds needs Python 3.11 or newer; python3 is $(python3 --version)" >&2
    exit 1
}
environment=.venv
[[ $versions == known ]] || environment=.venv-$versions

# Whether the environment can be used: it works where it lies, and no installation was cut short in it.
is_sound() {
    [[ ! -e $environment/installing ]] && "$environment/bin/python" -m pip --version >/dev/null 2>&1 &&
        grep -qF "$(cd "$environment" && pwd -P)" "$environment/bin/activate"
}

# Install packages; pip says which large ones are fetched, and how large they are. uv looks where pip would.
install() {
    if command -v uv >/dev/null; then
        UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-${PIP_INDEX_URL:-https://pypi.org/simple}} \
            UV_INDEX=${UV_INDEX:-${PIP_EXTRA_INDEX_URL:-}} UV_INDEX_STRATEGY=${UV_INDEX_STRATEGY:-unsafe-best-match} \
            uv pip install --quiet --compile-bytecode --python "$environment/bin/python" "$@" && return
        echo "uv could not install them (see above); pip tries" >&2
    fi
    python -m pip install --disable-pip-version-check --upgrade-strategy eager "$@" \
        > >(sed -unE 's/^ *(Downloading|Using cached) ([^ ]*-[0-9][^ ]*) (\(([0-9]{3,}(\.[0-9]+)? MB|[0-9.]+ GB)\)).*/  \2 \3/p')
}

while other=$(cat "$environment/installing" 2>/dev/null) && kill -0 "$other" 2>/dev/null; do
    echo "process $other is installing into $environment; waiting for it"
    sleep 5
done
if [[ ! -d $environment ]]; then
    python3 -m venv "$environment"
elif ! is_sound; then
    echo "$environment is broken, was moved or is half made: making it anew"
    python3 -m venv --clear "$environment"
fi
source "$environment/bin/activate"
wanted=$(cat requirements*.txt constraints.txt | sha256sum | cut -d' ' -f1)-$requirements
if ! grep -qxF "$wanted" "$environment/installed" 2>/dev/null; then
    echo "installing $requirements into $environment: PyTorch with its CUDA libraries takes 6 GB and some minutes" \
        "(pip install uv: one minute)"
    if [[ ! -e /dev/nvidia0 ]]; then
        echo "there is no NVIDIA GPU here: its CPU wheels, 1 GB, are taken from an index that has them, e.g. with" \
            "PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu"
    fi
    case $versions in
        known) chosen=(--constraint constraints.txt) ;;
        newest) chosen=(--upgrade) ;;
        lowest)
            sed -nE 's/^([a-z]+)>=([0-9.]+).*/\1==\2/p' requirements.txt >"$environment/lowest.txt"
            chosen=(--constraint "$environment/lowest.txt")
            ;;
        *)
            echo "error: versions must be known, newest or lowest, not $versions" >&2
            exit 1
            ;;
    esac
    echo $$ >"$environment/installing"
    install --requirement "$requirements" "${chosen[@]}" || exit 1
    install --no-deps --editable . || exit 1 # the command adatad-ds
    rm "$environment/installing"
    echo "$wanted" >>"$environment/installed"
fi
export DS_BUILD_OPS=0 # nothing is compiled
