#!/bin/sh
# Boots a machine that has no disk: its initramfs connects to the export NAME over the network, and
# goes on from there. The machine is virtual; a real one gets the same kernel, initramfs and kernel
# command line by PXE.
#
#   ubd serve --listen nbd://127.0.0.1 --template DIRECTORY/debian.img,dir=DIRECTORY/vms
#   examples/vm/diskless.sh DIRECTORY NAME
#
# Debian's nbd-client does it (see nbdroot= in its README.Debian): HOST,NAME,DEVICE. The machine
# sees this host's loopback addresses as 10.0.2.2. Other hosts: listen at nbds://, see ubd(8); the
# initramfs of this Debian release knows no TLS, so its network must be one that you trust
# (--allow-plain-tcp).
set -eu
if [ "$#" -lt 2 ]; then
  echo "usage: $0 DIRECTORY NAME" >&2
  exit 2
fi
directory=$1 name=$2
accelerator=${UBD_QEMU_ACCEL:-kvm:tcg}
exec qemu-system-x86_64 -machine "accel=$accelerator" -cpu max -smp 1 -m "${UBD_QEMU_MEMORY:-512}" \
  -nodefaults -no-reboot -display none -serial stdio -device virtio-rng-pci \
  -netdev user,id=net -device virtio-net-pci,netdev=net \
  -kernel "$directory/vmlinuz" -initrd "$directory/initrd" \
  -append "root=/dev/nbd0 nbdroot=10.0.2.2,$name,nbd0 ip=dhcp console=ttyS0 quiet \
panic=1 no_timer_check systemd.hostname=$name ${UBD_QEMU_APPEND:-}"
