# Debian packages of any release, unpacked and never installed.
# Sourced by bash scripts that have `set -euo pipefail`.
#
# The mirror is the one that this machine's apt uses for Debian; lists and packages are kept in
# directories of our own, so the machine's apt never learns of the other releases:
#
#     $cache/apt/SUITE/{sources.list,status,lists,archives}

PATH=$PATH:/usr/sbin:/sbin # depmod, modprobe
cache=${UBD_CACHE_DIR:-/var/cache/ubd-test}
vm_d=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

fail() { # STATUS LINE...: what failed, then what to do
  local status=$1 line
  printf '%s: %s\n' "${0##*/}" "$2" >&2
  shift 2
  for line in "$@"; do printf '    %s\n' "$line" >&2; done
  exit "$status"
}

packages_of() { sed 's/#.*//; /^ *$/d' "$vm_d/$1"; }

# One at a time: apt keeps its lists in one place. Held until debian_unlock, or the shell's end.
debian_lock() {
  mkdir -p "$cache"
  exec {lock}>"$cache/lock"
  flock "$lock"
}
debian_unlock() { exec {lock}>&-; }

debian_mirror() {
  # Neither security nor updates, which live elsewhere or are parts of a release: a release itself.
  # shellcheck disable=SC2016 # for apt-get
  apt-get indextargets --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages' |
    awk '$1 ~ /^(bookworm|trixie|forky|duke|sid|stable|testing|unstable)$/ { print $2; exit }'
}

# Runs an apt program for one suite: debian_apt SUITE PROGRAM ARG...
debian_apt() {
  local dir=$cache/apt/$1 program=$2
  shift 2
  "$program" -q -o Dir::Etc::sourcelist="$dir/sources.list" -o Dir::Etc::sourceparts=- \
    -o Dir::State="$dir" -o Dir::State::status="$dir/status" -o Dir::Cache="$dir" \
    -o Acquire::Languages=none -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false \
    -o APT::Get::List-Cleanup=false -o APT::Sandbox::User=root "$@"
}

# Brings the list of a suite up to date.
debian_update() {
  local suite=$1 dir=$cache/apt/$1 mirror
  local keys=/usr/share/keyrings/debian-archive-keyring.gpg
  command -v apt-get >/dev/null ||
    fail 1 'kernels come as Debian packages, and this machine has no apt-get'
  [ -e "$keys" ] ||
    fail 1 "no keys of the Debian archive ($keys)" 'apt-get install debian-archive-keyring'
  mirror=$(debian_mirror)
  [ -n "$mirror" ] ||
    fail 1 "this machine's apt knows no mirror of Debian" 'see apt-get indextargets'
  mkdir -p "$dir/lists/partial" "$dir/archives/partial"
  touch "$dir/status" # nothing is installed: whatever a package depends on would have to be named
  echo "deb [signed-by=$keys] $mirror $suite main" >"$dir/sources.list"
  debian_apt "$suite" apt-get update
}

# debian_unpack SUITE DIR PACKAGE...: downloads, unpacks, and forgets the download.
debian_unpack() {
  local suite=$1 into=$2 downloads package
  shift 2
  downloads=$(mktemp -d "$cache/apt/$suite/download.XXXXXX")
  # In a subshell, so that an interrupted download is removed too.
  (
    trap 'rm -rf "$downloads"' EXIT
    cd "$downloads" || exit
    debian_apt "$suite" apt-get download "$@"
    for package in *.deb; do dpkg-deb -x "$package" "$into"; done
  )
}
