#!/usr/bin/env bash
# Make or complete a virtual environment from lock files.
#
#   install.sh VENV LOCK...
#
# PYTHON      the interpreter (default: python3.11, else python3)
# TORCH_INDEX where PyTorch's CPU builds are, should pip's own index not have them
set -euo pipefail
venv=${1:?usage: install.sh VENV LOCK...}
shift
python=${PYTHON:-$(command -v python3.11 || command -v python3 || true)}
torch_index=${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}

fail() { printf 'axiond: %s\n' "$*" >&2; exit 1; }
is_terminal() { [ -t 1 ]; }

[ -n "$python" ] || fail "Python is missing: apt-get install python3 python3-venv"
"$python" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12), (3, 13)))' ||
  fail "$python is $("$python" -V 2>&1); Python 3.11 is needed"

missing=()
"$python" -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv)
"$python" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null || missing+=(libnuma1) # vLLM's kernels are linked to it
command -v g++ >/dev/null || missing+=(g++)
"$python" -c 'import os, sysconfig, sys; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || missing+=(python3-dev)
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    fail "$python and vLLM need what is not installed: apt-get install ${missing[*]}"
  fi
  echo "Installing ${missing[*]}"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}" >/dev/null
fi

pip() { "$venv/bin/python" -m pip --disable-pip-version-check --no-input "$@"; }

# Folders that the machine's pip configuration names, and that lack a package, are not worth a line each.
without_noise() { grep -v '^WARNING: Location .* is ignored' >&2 || true; }

# pip's own output, reduced to one line that counts packages; in a log, to one line for every twenty.
count_packages() {
  local total=$1 done=0 word package
  while read -r word package _; do
    case $word in
      Collecting | Processing)
        done=$((done + 1))
        package=${package##*/}; package=${package%%-[0-9]*}
        package=${package%%=*}
        if is_terminal; then printf '\r\033[K  [%d/%d] %s' "$done" "$total" "$package"
        elif [ $((done % 20)) = 0 ]; then printf '  [%d/%d] %s\n' "$done" "$total" "$package"; fi ;;
      Installing) is_terminal && printf '\r\033[K'; printf '  unpacking them, about a minute\n' ;;
    esac
  done
}

if [ ! -x "$venv/bin/python" ]; then
  echo "Making $venv with $("$python" -V)"
  "$python" -m venv "$venv"
fi
torch=$(cat "$@" | grep '^torch==')
newest_pip=$(cat "$@" | grep '^pip==')
pip install --quiet --no-deps "$newest_pip"

if [ "$("$venv/bin/python" -c 'from importlib.metadata import version; print(version("torch"))' 2>/dev/null)" != "${torch#*==}" ]; then
  echo "Installing $torch (200 MB)"
  pip install --quiet --no-deps "$torch" 2>/dev/null ||
    pip install --no-deps --index-url "$torch_index" "$torch" ||
    fail "$torch is neither at pip's own index nor at $torch_index; set TORCH_INDEX to a mirror of PyTorch's CPU builds"
fi

locks=()
for lock in "$@"; do locks+=(-r "$lock"); done
total=$(cat "$@" | grep -c '==')
echo "Installing $total packages"
pip install --no-deps "${locks[@]}" 2> >(without_noise) | count_packages "$total"
