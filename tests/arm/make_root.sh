#!/usr/bin/env bash
# Make an aarch64 Debian in a folder, in which vLLM's own aarch64 wheel runs under qemu. As root; 6 GiB, about 10 minutes.
#
#   make_root.sh DIR
#
# Why the odd steps:
# - Debian 12's qemu 7.2 crashes when torch 2.13 is imported. qemu 10, from the next Debian, does not.
# - What package indexes have as torch 2.13.0 for aarch64 is a CUDA build. It computes on the CPU all the same, but lacks
#   OpenBLAS's sbgemm_, to which vLLM's _C is linked: sbgemm.cc supplies it.
# - oneDNN asks sysfs which CPU this is, so the root gets a sysfs that says Neoverse V2.
set -euo pipefail
root=$(realpath -m "${1:?usage: make_root.sh DIR}")
python=${PYTHON:-python3.11}
here=$(dirname "$(realpath "$0")")
lock=$here/../../requirements/run.lock
tools=$root.tools
unfinished=$root.new

fail() { printf 'make_root: %s\n' "$*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || fail "only root can make a Debian root"
command -v debootstrap >/dev/null || fail "debootstrap is missing: apt-get install debootstrap"

# apt's settings for the next Debian release, kept apart from this machine's.
next_apt() {
  apt-get -oDir::Etc::sourcelist="$tools/next.list" -oDir::Etc::sourceparts=/dev/null -oDir::State::lists="$tools/lists" \
    -oDir::Cache="$tools/cache" -oAPT::Sandbox::User=root "$@"
}

fetch_qemu() {
  local mirror
  mirror=$(apt-get indextargets --format '$(SITE)' 'Codename: bookworm' | head -1)
  mkdir -p "$tools/lists/partial" "$tools/cache/archives/partial"
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" >"$tools/next.list"
  next_apt update -qq
  (cd "$tools" && next_apt download -qq qemu-user && dpkg -x qemu-user_*.deb .)
}

# Have the kernel run aarch64 programs through qemu, until the next boot. It opens qemu now (F), so that it is found inside a chroot.
register_qemu() {
  local binfmt=/proc/sys/fs/binfmt_misc magic mask
  magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
  mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
  [ -e $binfmt/register ] || mount -t binfmt_misc binfmt_misc $binfmt
  [ ! -e $binfmt/axiond-aarch64 ] || echo -1 >$binfmt/axiond-aarch64
  printf ':axiond-aarch64:M::%s:%s:%s:F' "$magic" "$mask" "$tools/usr/bin/qemu-aarch64" >$binfmt/register
}

pretend_neoverse_v2() {
  local cpus=$unfinished/sys/devices/system/cpu cpu
  mkdir -p "$unfinished/sys/devices/system"
  # Some files there are not for reading.
  cp -r --no-preserve=all /sys/devices/system/{cpu,node} "$unfinished/sys/devices/system/" 2>/dev/null || true
  for cpu in "$cpus"/cpu[0-9]*; do
    mkdir -p "$cpu/regs/identification"
    echo 0x00000000410fd4f0 >"$cpu/regs/identification/midr_el1"
  done
}

# Resolved and unpacked by this machine's pip, and compiled here, for nothing is quick under emulation.
install_wheels() {
  local n platforms=(--platform manylinux2014_aarch64 --platform linux_aarch64)
  for n in $(seq 5 39); do platforms+=(--platform "manylinux_2_${n}_aarch64"); done
  pip_arm() {
    "$python" -m pip install -q --disable-pip-version-check --root-user-action=ignore --target "$unfinished/opt/packages" --upgrade \
      --only-binary=:all: --python-version 3.11 --implementation cp --no-compile --no-cache-dir "${platforms[@]}" "$@" \
      2> >(grep -v '^WARNING: Location .* is ignored' >&2)
  }
  grep '==' "$lock" | grep -v '^torch==' >"$tools/packages.txt"
  pip_arm -c "$tools/packages.txt" "$(grep -o '^torch==[0-9.]*' "$lock")" # with what it depends on: CUDA
  pip_arm --no-deps -r "$tools/packages.txt" scikit-build-core pybind11
  "$python" -m compileall -q -j 0 -s "$unfinished" "$unfinished/opt/packages" >/dev/null || true # some files are for a newer Python
}

mkdir -p "$tools"
[ -x "$tools/usr/bin/qemu-aarch64" ] || fetch_qemu
register_qemu
[ ! -d "$root" ] || exit 0

rm -rf "$unfinished"
debootstrap --arch=arm64 --variant=minbase --include=python3,python3-dev,g++,cmake,ninja-build,libgomp1,libnuma1 \
  bookworm "$unfinished" >"$tools/debootstrap.log" 2>&1 || fail "debootstrap: see $tools/debootstrap.log"
pretend_neoverse_v2
install_wheels
cp "$here/sbgemm.cc" "$unfinished/opt/"
chroot "$unfinished" g++ -O2 -shared -fPIC -o /opt/libsbgemm.so /opt/sbgemm.cc
mv "$unfinished" "$root"
