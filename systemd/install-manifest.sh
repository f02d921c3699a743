#!/usr/bin/env bash
# Put a manifest in place, never over one that somebody edited.
#
#   install-manifest.sh NEW PLACE
set -euo pipefail
new=$1 place=$2

if [ ! -e "$place" ]; then
  install -m 660 "$new" "$place"
elif ! cmp -s "$new" "$place"; then
  install -m 660 "$new" "$place.new"
  echo "Kept $place; the one of this version is beside it as ${place##*/}.new"
fi
