#!/bin/sh
# Runs one CI job in a fresh copy of a golden image, and throws the copy away, however the job ends.
#
#   examples/ci-job.sh IMAGE COMMAND [ARGUMENT...]      as root; UBD names the command, default: ubd
#
# The image is a file system with what the job needs. Hundreds of jobs can run from it side by side:
# each has a disk of its own, and the host reads the image once.
set -eu
if [ "$#" -lt 2 ]; then
  echo "usage: $0 IMAGE COMMAND [ARGUMENT...]" >&2
  exit 2
fi
image=$1
shift
ubd=${UBD:-ubd}
name=job-$$
place=$(mktemp -d)

cleanup() {
  trap '' INT TERM HUP
  if mountpoint -q "$place"; then umount "$place"; fi
  rmdir "$place"
  $ubd detach "$name" >/dev/null 2>&1 || true
}
trap cleanup EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

device=$($ubd attach "$image" --ephemeral --name "$name")
mount "$device" "$place"
# The job's status is ours. A real runner would add namespaces here: unshare, bubblewrap, a
# container.
chroot "$place" "$@"
