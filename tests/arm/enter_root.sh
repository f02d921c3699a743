#!/usr/bin/env bash
# Run a command as aarch64 in a root that make_root.sh made; this repository is /src there, read-only.
#
#   enter_root.sh DIR COMMAND...
#   QEMU_CPU=neoverse-n1 enter_root.sh DIR COMMAND...     a CPU without i8mm, bf16 and SVE; the default has everything
#   INSIDE="NAME=VALUE ..." enter_root.sh DIR COMMAND...  variables for the command
#
# Emulation is 20 to 40 times slower than a CPU: importing vLLM takes minutes. It shows what is right, never what is fast.
set -euo pipefail
root=$(realpath "${1:?usage: enter_root.sh DIR COMMAND...}")
shift
here=$(dirname "$(realpath "$0")")
# Mounts in a namespace of their own end with the command.
exec unshare --mount --pid --fork --kill-child bash -euc '
  root=$1 source=$2
  shift 2
  mkdir -p "$root/src"
  mount -t proc proc "$root/proc"
  mount --rbind /dev "$root/dev"
  mount --bind -o ro "$source" "$root/src"
  exec chroot "$root" /usr/bin/env -i HOME=/root PATH=/usr/bin:/bin LANG=C.UTF-8 QEMU_CPU="${QEMU_CPU:-max}" \
    PYTHONPATH=/opt/axiond:/opt/packages LD_PRELOAD=/opt/libsbgemm.so HF_HUB_OFFLINE=1 DO_NOT_TRACK=1 ${INSIDE:-} "$@"
' enter "$root" "$here/../.." "$@"
