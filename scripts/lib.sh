# What the scripts share: where things are, how they speak, and how they find Node.
# Sourced by bash scripts that have `set -euo pipefail`.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# One line for people, plain in a pipe.
bold='' dim='' red='' plain=''
if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' red=$'\e[31m' plain=$'\e[0m'; fi

say() { printf '%s\n' "$*"; }
title() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
die() {
  printf '%serror:%s %s\n' "$red" "$plain" "$1" >&2
  shift
  for line in "$@"; do printf '       %s\n' "$line" >&2; done
  exit 1
}

# Milliseconds, for differences only.
now_ms() { local t=${EPOCHREALTIME/[.,]/}; echo $((t / 1000)); }

# step TITLE COMMAND...: runs it with its output in $log; prints the title and the time it took.
# On failure the end of the log, and its name. A function runs in a subshell with errexit on; yet
# bash ignores errexit where `step` itself stands in a condition, so there a function must check for
# itself.
step() {
  local title=$1 from start status
  shift
  printf '  %-44s ' "$title"
  from=$(($(wc -c <"$log") + 1))
  start=$(now_ms)
  printf '\n== %s: %s\n' "$title" "$*" >>"$log"
  set +e
  (
    set -e
    "$@"
  ) >>"$log" 2>&1 </dev/null
  status=$?
  set -e
  if [ "$status" -eq 0 ]; then
    printf '%s%6d ms%s\n' "$dim" $(($(now_ms) - start)) "$plain"
    return 0
  fi
  printf '%sfailed%s (status %d)\n' "$red" "$plain" "$status"
  tail -c "+$from" "$log" | tail -n 25 | sed 's/^/    /' >&2
  say "    the whole log: $log" >&2
  return "$status"
}

node_min=20.19.0
node_ok() { # is NODE new enough, and none of the odd versions that package.json leaves out?
  "$1" -e '
    const [a, b] = process.versions.node.split(".").map(Number);
    process.exit((a === 20 && b >= 19) || (a === 22 && b >= 12) || a > 22 ? 0 : 1);' 2>/dev/null
}

# Puts the first fitting Node in front of PATH. sudo resets PATH, so the caller's own places are
# looked at too: version managers keep Node below the home directory.
find_node() {
  local home='' dir
  if [ -n "${SUDO_USER:-}" ]; then home=$(getent passwd "$SUDO_USER" | cut -d: -f6); fi
  if command -v node >/dev/null && node_ok node && command -v npm >/dev/null; then return 0; fi
  for home in ${home:+"$home"} "$HOME"; do
    for dir in "$home"/.nvm/versions/node/*/bin \
      "$home"/.local/share/fnm/node-versions/*/installation/bin \
      "$home"/.local/share/mise/installs/node/*/bin "$home"/.asdf/installs/nodejs/*/bin \
      "$home"/.volta/bin "$home"/n/bin "$home"/.local/bin \
      /usr/local/bin /opt/node/bin /opt/node*/bin /usr/local/lib/nodejs/*/bin /usr/bin; do
      if [ -x "$dir/node" ] && [ -e "$dir/npm" ] && node_ok "$dir/node"; then
        PATH=$dir:$PATH
        export PATH
        return 0
      fi
    done
  done
  return 1
}

# node-gyp needs Node's headers. Where they lie beside Node it need not download them.
find_headers() {
  if [ -n "${npm_config_nodedir:-}" ]; then return 0; fi
  local prefix
  prefix=$(node -p 'require("path").resolve(process.execPath, "../..")')
  if [ -e "$prefix/include/node/node_api.h" ]; then
    export npm_config_nodedir=$prefix
  elif [ -e /usr/include/nodejs/src/node_api.h ]; then # Debian's libnode-dev
    export npm_config_nodedir=/usr/include/nodejs
  fi
}

need_root() {
  if [ "$(id -u)" -ne 0 ]; then
    die "$1 needs root: it makes loop devices and mounts file systems" "try: sudo $0"
  fi
}
