#!/bin/sh
# Boots a virtual machine from a disk of its own: the export NAME, over a unix socket.
#
#   ubd serve --listen nbd+unix:///run/ubd/nbd.sock \
#     --template DIRECTORY/debian.img,dir=DIRECTORY/vms
#   examples/vm/boot.sh DIRECTORY NAME [SOCKET]
#
# What the machine writes goes to DIRECTORY/vms/NAME.leaf, and is there when it boots again. Its
# console is this terminal; `systemctl poweroff` ends it. DIRECTORY is what make-root.sh has made;
# with an image that has a boot loader, leave -kernel, -initrd and -append out.
#
# A machine whose kernel panics ends (panic=1); that a busy host is late with the timer is no reason
# to (no_timer_check). UBD_QEMU_ACCEL=tcg where /dev/kvm is there and does not work, as in some
# virtual machines; UBD_QEMU_MEMORY is in MiB; UBD_QEMU_APPEND goes to the kernel's command line.
set -eu
if [ "$#" -lt 2 ]; then
  echo "usage: $0 DIRECTORY NAME [SOCKET]" >&2
  exit 2
fi
directory=$1 name=$2 socket=${3:-/run/ubd/nbd.sock}
accelerator=${UBD_QEMU_ACCEL:-kvm:tcg}
exec qemu-system-x86_64 -machine "accel=$accelerator" -cpu max -smp 1 -m "${UBD_QEMU_MEMORY:-512}" \
  -nodefaults -no-reboot -display none -serial stdio -device virtio-rng-pci \
  -kernel "$directory/vmlinuz" -initrd "$directory/initrd" \
  -append "root=LABEL=debian console=ttyS0 quiet panic=1 no_timer_check systemd.hostname=$name \
${UBD_QEMU_APPEND:-}" \
  -blockdev "driver=nbd,node-name=disk,server.type=unix,server.path=$socket,export=$name" \
  -device virtio-blk-pci,drive=disk
