#!/bin/sh
# Boots many virtual machines from one root image, each with a disk of its own.
#
#   ubd serve --listen nbd+unix:///run/ubd/nbd.sock \
#     --template DIRECTORY/debian.img,dir=DIRECTORY/vms
#   examples/vm/fleet.sh DIRECTORY COUNT [SOCKET]
#
# They are vm-1, vm-2, …; so many boot at once as this machine has processors (or UBD_BOOTING). When
# all of them run, each at its prompt, they are powered off; at the end, what each of them had
# written: the size of its leaf.
set -eu
if [ "$#" -lt 2 ]; then
  echo "usage: $0 DIRECTORY COUNT [SOCKET]" >&2
  exit 2
fi
directory=$1 count=$2 socket=${3:-/run/ubd/nbd.sock}
here=$(dirname "$0")
logs=$(mktemp -d)
trap 'cat "$logs"/*.pid 2>/dev/null | xargs -r kill 2>/dev/null || :; rm -rf "$logs"' EXIT
trap 'exit 130' HUP INT TERM

booting_max=${UBD_BOOTING:-$(nproc)}

started=0 up=0
while [ "$up" -lt "$count" ]; do
  booting=0
  for pid in "$logs"/*.pid; do
    [ -e "$pid" ] || continue
    log=${pid%.pid}
    [ ! -e "$log.up" ] || continue
    if grep -q ':~# ' "$log"; then
      : >"$log.up"
      up=$((up + 1))
      echo "${log##*/} is up"
    elif kill -0 "$(cat "$pid")" 2>/dev/null; then
      booting=$((booting + 1))
    else
      echo "${log##*/} has ended:" >&2
      tail -n 20 "$log" >&2
      exit 1
    fi
  done
  if [ "$booting" -lt "$booting_max" ] && [ "$started" -lt "$count" ]; then
    started=$((started + 1))
    log=$logs/vm-$started
    : >"$log"
    mkfifo "$log.in"
    "$here/boot.sh" "$directory" "vm-$started" "$socket" <>"$log.in" >"$log" 2>&1 &
    echo $! >"$log.pid"
  else
    sleep 1
  fi
done

echo "all $count are up"
for input in "$logs"/*.in; do echo 'systemctl poweroff' >"$input"; done
wait
rm -f "$logs"/*.pid
du -h "$directory"/vms/vm-*.leaf
