#!/bin/sh
# Boots many virtual machines from one root image, each with a disk of its own.
#
#   ubd serve --listen nbd+unix:///run/ubd/nbd.sock \
#     --template DIRECTORY/debian.img,dir=DIRECTORY/vms
#   examples/vm/fleet.sh DIRECTORY COUNT [SOCKET]
#
# They are vm-1, vm-2, …; each runs until its login prompt, and is powered off then. At the end,
# what each of them had written: the size of its leaf.
set -eu
if [ "$#" -lt 2 ]; then
  echo "usage: $0 DIRECTORY COUNT [SOCKET]" >&2
  exit 2
fi
directory=$1 count=$2 socket=${3:-/run/ubd/nbd.sock}
here=$(dirname "$0")
logs=$(mktemp -d)
trap 'cat "$logs"/*.pid 2>/dev/null | xargs -r kill 2>/dev/null; rm -rf "$logs"' EXIT
trap 'exit 130' HUP INT TERM

number=0
while [ "$number" -lt "$count" ]; do
  number=$((number + 1))
  log=$logs/vm-$number
  mkfifo "$log.in"
  "$here/boot.sh" "$directory" "vm-$number" "$socket" <>"$log.in" >"$log" 2>&1 &
  echo $! >"$log.pid"
done

number=0
while [ "$number" -lt "$count" ]; do
  number=$((number + 1))
  log=$logs/vm-$number
  until grep -q ':~# ' "$log"; do
    kill -0 "$(cat "$log.pid")" 2>/dev/null || {
      echo "vm-$number has ended:" >&2
      tail -n 20 "$log" >&2
      exit 1
    }
    sleep 1
  done
  echo "vm-$number is up"
  echo 'systemctl poweroff' >"$log.in"
done
wait
du -h "$directory"/vms/vm-*.leaf
