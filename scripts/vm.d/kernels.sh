# The kernels: what they are called, where they lie, whether they can run here.
# Sourced after debian.sh.
#
#     uml          User-Mode Linux, an ordinary program: UBD_UML, or made by scripts/build-uml
#     debian-…     Debian's own, in qemu: in $cache/NAME
#                  release, version     of the kernel, of its packages
#                  vmlinux              the kernel      initramfs.KEY   what it starts with
#                  lib/modules/RELEASE  its modules

kernels=(uml debian-7 debian-6.12 debian-6.1) # in the order of preference
declare -rA suite_of=(
  [debian-6.1]=bookworm
  [debian-6.12]=bookworm-backports
  [debian-7]=trixie-backports # the newest there is, named after what that was at first
)
# What a guest needs before it sees its root; everything else it loads from there by itself.
initramfs_modules=(virtio_pci virtio_console virtio_rng 9pnet_virtio 9p overlay)

uml_binary() {
  local at=${UBD_UML:-$cache/uml}
  if [ -d "$at" ]; then at=$at/linux; fi
  realpath -m "$at"
}

# Prints why a kernel cannot run here, and what to do; nothing where it can.
why_not() {
  local kernel=$1 binary name missing=()
  if [ "$(id -u)" -ne 0 ]; then
    echo 'a guest reads every file of this machine, so this needs root'
  elif [ "$kernel" = uml ]; then
    binary=$(uml_binary)
    if [ "$(uname -m)" != x86_64 ]; then
      echo 'needs x86_64'
    elif [ ! -x "$binary" ]; then
      echo "no User-Mode Linux at $binary: set UBD_UML, or run scripts/build-uml (it takes a while)"
    fi
  elif [ -z "${suite_of[$kernel]:-}" ]; then
    echo "no such kernel; known: ${kernels[*]}"
  else
    for name in qemu-system-x86_64:qemu-system-x86 busybox:busybox-static modprobe:kmod \
      depmod:kmod xz:xz-utils zstd:zstd; do
      command -v "${name%:*}" >/dev/null || missing+=("${name#*:}")
    done
    if [ "${#missing[@]}" -gt 0 ]; then
      echo "missing: apt-get install ${missing[*]}"
    elif [ ! -e "$cache/$kernel/release" ]; then
      echo "not downloaded: scripts/vm --fetch $kernel"
    fi
  fi
}

# One line about a kernel that can run.
describe() {
  local kernel=$1
  if [ "$kernel" = uml ]; then
    echo "$("$(uml_binary)" --version) (User-Mode Linux, $(uml_binary))"
  else
    echo "$(cat "$cache/$kernel/release") (qemu, $(accelerator))"
  fi
}

default_kernel() {
  local kernel
  for kernel in "${kernels[@]}"; do
    if [ -z "$(why_not "$kernel")" ]; then
      echo "$kernel"
      return
    fi
  done
  fail 2 'no kernel can run here' "$(list_kernels)"
}

list_kernels() {
  local kernel reason
  for kernel in "${kernels[@]}"; do
    reason=$(why_not "$kernel")
    printf '%-12s %-4s %s\n' "$kernel" "$([ -z "$reason" ] && echo yes || echo no)" \
      "${reason:-$(describe "$kernel")}"
  done
}

# Downloads a kernel, unless the newest is there already. Not while a guest runs the one that it
# replaces.
fetch_kernel() {
  local kernel=$1 suite=${suite_of[$1]:-} packages version release dir tmp
  if [ "$kernel" = uml ]; then fail 2 'Debian has no package of User-Mode Linux fit for tests' \
    'it is built from the kernel source: scripts/build-uml'; fi
  [ -n "$suite" ] || fail 2 "no such kernel: $kernel" "known: ${!suite_of[*]}"
  debian_lock
  debian_update "$suite"
  # One package, or split in program and modules.
  mapfile -t packages < <(debian_apt "$suite" apt-cache depends --recurse --important \
    linux-image-amd64 | grep -Ex 'linux-(image|binary|modules|base)-[0-9][^ ]*' | sort)
  [ "${#packages[@]}" -gt 0 ] || fail 1 "no linux-image-amd64 in $suite"
  dir=$cache/$kernel
  version=$(debian_apt "$suite" apt-cache show "${packages[@]}" | grep -E '^(Package|Version):')
  if [ "$version" = "$(cat "$dir/version" 2>/dev/null)" ]; then
    printf '%-12s %s, the newest\n' "$kernel" "$(cat "$dir/release")"
    return
  fi
  tmp=$(mktemp -d "$cache/$kernel.XXXXXX")
  # shellcheck disable=SC2064 # the names of now
  trap "rm -rf '$tmp'" EXIT
  debian_unpack "$suite" "$tmp" "${packages[@]}"

  # One layout for all: Debian moved both parts around over the years.
  mkdir -p "$tmp/out/lib"
  mv "$tmp"/lib/modules "$tmp/out/lib/" 2>/dev/null || mv "$tmp"/usr/lib/modules "$tmp/out/lib/"
  release=$(ls "$tmp/out/lib/modules")
  unpack_kernel "$(find "$tmp" -name 'vmlinuz*' | head -n 1)" >"$tmp/out/vmlinux"
  depmod -b "$tmp/out" "$release"
  echo "$release" >"$tmp/out/release"
  echo "$version" >"$tmp/out/version"
  chmod 755 "$tmp/out"
  rm -rf "$dir"
  mv "$tmp/out" "$dir"
  rm -rf "$tmp"
  printf '%-12s %s, %s\n' "$kernel" "$release" "$(du -sh "$dir" | cut -f1)"
}

# The program inside of a bzImage (offsets: the kernel's Documentation/arch/x86/boot.rst). qemu
# starts it by its PVH entry, which saves an emulated CPU the work of unpacking it: two of nine
# seconds.
unpack_kernel() {
  local image=$1 sectors offset length
  number() { od -An -j "$1" -N "$2" -t "u$2" "$image" | tr -d ' '; }
  sectors=$(number 0x1f1 1) # setup_sects
  offset=$(number 0x248 4)  # payload_offset
  length=$(number 0x24c 4)  # payload_length
  # The payload ends with its own length, which is no part of what was compressed.
  dd if="$image" of="$image.payload" bs=1M iflag=skip_bytes,count_bytes status=none \
    skip=$(((sectors + 1) * 512 + offset)) count=$((length - 4))
  zstd -qdc "$image.payload" 2>/dev/null || xz -dc "$image.payload"
}

# Prints the initramfs of a kernel, making it if there is none of just these parts.
initramfs() {
  local dir=$cache/$1 release key image tmp module path busybox
  release=$(cat "$dir/release")
  busybox=$(command -v busybox)
  key=$(cat "$vm_d/initramfs" "$busybox" - <<<"${initramfs_modules[*]}" | sha256sum | cut -c1-16)
  image=$dir/initramfs.$key
  if [ ! -e "$image" ]; then
    tmp=$(mktemp -d "$dir/tmp.XXXXXX")
    mkdir -p "$tmp"/root/{bin,modules,dev,proc,sys,new}
    cp "$busybox" "$tmp/root/bin/busybox"
    cp "$vm_d/initramfs" "$tmp/root/init"
    chmod 755 "$tmp/root/init"
    # Every module after those that it depends on; not compressed, since busybox cannot undo that.
    modprobe -d "$dir" -S "$release" --show-depends -a "${initramfs_modules[@]}" |
      awk '$1 == "insmod" && !seen[$2]++ { print $2 }' |
      while read -r path; do
        module=$(basename "$path" | sed 's/\.ko.*//')
        case $path in
          *.xz) xz -dc "$path" ;;
          *.zst) zstd -dc "$path" ;;
          *.gz) gzip -dc "$path" ;;
          *) cat "$path" ;;
        esac >"$tmp/root/modules/$module.ko"
        echo "$module" >>"$tmp/root/modules/order"
      done
    (cd "$tmp/root" && find . | busybox cpio -o -H newc 2>/dev/null | gzip -1) >"$tmp/image"
    mv "$tmp/image" "$image"
    rm -rf "$tmp"
  fi
  echo "$image"
}

# KVM where it really runs a guest, else emulation. The guest of the question is 64 KiB of firmware
# whose last 16 bytes count to 2^27 and say 42 to the device that ends qemu (with 2 * 42 + 1). A KVM
# that is itself an emulation (some hosts without nested virtualization have one) fails at the CPU,
# or counts for minutes.
accelerator() {
  local answer rom status=0
  answer=$cache/accelerator.$(cat /proc/sys/kernel/random/boot_id)
  if [ ! -w /dev/kvm ]; then
    echo tcg
    return
  fi
  if [ ! -e "$answer" ]; then
    rom=$(mktemp)
    {
      head -c 65520 /dev/zero
      printf '\x66\xb9\x00\x00\x00\x08' #    mov $0x8000000, %ecx
      printf '\x66\x49\x75\xfc'         # 1: dec %ecx; jnz 1b
      printf '\xb0\x2a\xe6\xf4\xf4\x00' #    mov $42, %al; out %al, $0xf4; hlt
    } >"$rom"
    timeout -s KILL 5 qemu-system-x86_64 -accel kvm -cpu max -nodefaults -no-user-config \
      -display none -bios "$rom" -device isa-debug-exit,iobase=0xf4,iosize=1 \
      </dev/null >/dev/null 2>&1 || status=$?
    rm -f "$rom"
    mkdir -p "$cache"
    if [ "$status" -eq 85 ]; then echo kvm; else echo tcg; fi >"$answer.$$"
    mv "$answer.$$" "$answer"
  fi
  cat "$answer"
}
