#!/bin/sh
# Keeps what a device holds in a second place: another disk, or a directory of another host.
#
#   examples/second-place.sh NAME DIRECTORY [SECONDS]     as root; UBD names the command
#
# Again and again (without SECONDS: once) the state of the device is frozen as an intermediate image
# beside its leaf, while the device goes on, and the image is copied to DIRECTORY. An image holds
# what was written since the one before, so each round costs what was changed. A mounted file system
# stands still for the moment of freezing: every image mounts as it is.
#
#     leaf's directory   NAME.000001.image ◀─ NAME.000002.image ◀─ the leaf, in use
#     DIRECTORY          NAME.000001.image ◀─ NAME.000002.image
#
# What is lost when the leaf's disk is lost: what was written after the last image that is in
# DIRECTORY. An image is there whole or not at all, and durable. The script may be stopped at any
# point, and started again: it goes on with what is not there yet.
#
# After a loss, with the root where it was (else see ubd info --rebase-path):
#
#     ubd fork DIRECTORY/NAME.000002.image --leaf NEW.leaf && ubd attach --leaf NEW.leaf
#
# The chain grows by an image each round. Opening a device takes a file for each of them: with an
# image an hour, begin anew after some weeks (ubd export, or ubd reconcile).
set -eu
if [ "$#" -lt 2 ] || [ "$#" -gt 3 ]; then
  echo "usage: $0 NAME DIRECTORY [SECONDS]" >&2
  exit 2
fi
name=$1
there=$2
every=${3:-}
ubd=${UBD:-ubd}

field() { # NAME FIELD: of what ubd tells about the device
  $ubd info "$1" --json | sed -n "s/^  \"$2\": \"\{0,1\}\([^\",]*\)\"\{0,1\},\{0,1\}$/\1/p"
}

leaf=$(field "$name" leaf)
if [ -z "$leaf" ] || [ "$leaf" = null ]; then
  echo "$0: $name has no leaf" >&2
  exit 1
fi
here=$(dirname "$leaf")
mkdir -p "$there"

images() { # DIRECTORY: the numbers of the images in it, in order
  find "$1" -maxdepth 1 -name "$name.[0-9][0-9][0-9][0-9][0-9][0-9].image" |
    sed 's/.*\.\([0-9]*\)\.image$/\1/' | sort
}

copy() { # NUMBER: whole or not at all, and durable
  cp --sparse=always "$here/$name.$1.image" "$there/.$name.new"
  sync "$there/.$name.new"
  mv "$there/.$name.new" "$there/$name.$1.image"
  sync "$there"
  echo "$there/$name.$1.image"
}

round() {
  changed=$(field "$name" changed)
  if [ "$changed" != 0 ]; then
    last=$(images "$here" | tail -n 1 | sed 's/^0*//')
    $ubd snapshot "$name" "$here/$(printf '%s.%06d.image' "$name" $((${last:-0} + 1)))" >/dev/null
  fi
  for number in $(images "$here"); do
    [ -e "$there/$name.$number.image" ] || copy "$number"
  done
}

round
while [ -n "$every" ]; do
  sleep "$every"
  round
done
