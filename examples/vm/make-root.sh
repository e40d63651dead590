#!/bin/sh
# Makes a Debian system that virtual machines boot from: a root image for all of them, and beside it
# the kernel and initramfs to start it with. As root, on Debian; takes a few minutes.
#
#   examples/vm/make-root.sh DIRECTORY      DIRECTORY/debian.img, vmlinuz, initrd
#
# The initramfs has nbd-client, so that a machine without a disk finds its root over the network
# (diskless.sh). root needs no password on the serial console: this is a system to play with.
set -eu
directory=${1:?usage: $0 DIRECTORY}
for program in mmdebstrap mke2fs; do
  command -v "$program" >/dev/null || {
    echo "$0: $program is not installed: apt-get install mmdebstrap e2fsprogs" >&2
    exit 1
  }
done
mkdir -p "$directory"
if [ -e "$directory/debian.img" ]; then
  echo "$directory/debian.img is there already"
  exit 0
fi

work=$(mktemp -d "$directory/making.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT
trap 'exit 130' HUP INT TERM

# The lists of packages that this machine's apt knows, of the distribution itself.
# shellcheck disable=SC1091
. /etc/os-release
[ -n "$(apt-get indextargets 'Created-By: Packages')" ] || apt-get -q update
keyring=/usr/share/keyrings/$ID-archive-keyring.gpg
# shellcheck disable=SC2016 # for apt-get
apt-get indextargets --format '$(RELEASE)|$(REPO_URI)|$(COMPONENT)' 'Created-By: Packages' |
  sort -u | sed -n "s#^\(${VERSION_CODENAME}[^|]*\)|\([^|]*\)|#deb [signed-by=$keyring] \2 \1 #p" \
  >"$work/sources"

mmdebstrap --mode=root --variant=minbase --format=directory \
  --include=systemd-sysv,udev,linux-image-amd64,initramfs-tools,zstd,nbd-client,iproute2 \
  "$VERSION_CODENAME" "$work/root" - <"$work/sources"
chroot "$work/root" passwd -d root
echo 'LABEL=debian / ext4 defaults,discard 0 1' >"$work/root/etc/fstab"
console=$work/root/etc/systemd/system/serial-getty@ttyS0.service.d
mkdir -p "$console"
cat >"$console/autologin.conf" <<'END'
[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin root --keep-baud 115200,38400,9600 - $TERM
END

cp "$work"/root/boot/vmlinuz-* "$directory/vmlinuz"
cp "$work"/root/boot/initrd.img-* "$directory/initrd"
mib=$(du -sm --one-file-system "$work/root" | cut -f1)
mke2fs -q -t ext4 -L debian -d "$work/root" "$work/image" $((mib * 5 / 4 + 512))M
mv "$work/image" "$directory/debian.img"
echo "$directory/debian.img is made"
