#!/bin/sh
# Installs or uninstalls reverse-http: curl -fsSL https://github.com/reverse-http/reverse-http/releases/latest/download/install.sh | sh
# Everything is in functions, called by the last line: a truncated download does nothing.
set -eu

REPOSITORY="https://github.com/reverse-http/reverse-http"
SIGNER="^$REPOSITORY/\.github/workflows/release\.yml@refs/tags/v"
ISSUER="https://token.actions.githubusercontent.com"
KNOWN="reverse-http reverse-http-proxy reverse-http-agent reverse-http-lb"

usage() {
  cat <<'USAGE'
Installs reverse-http: one executable that is proxy, agent and load balancer.

usage: install.sh [options]        curl -fsSL …/install.sh | sh -s -- [options]

  --version VERSION  install this release, such as 1.2.3; default: the latest
  --dir DIR          install into DIR; default: /usr/local/bin, or ~/.local/bin if that is not writable
  --only NAME        install only proxy, agent or lb, as reverse-http-NAME; may be repeated
  --all              install reverse-http, and proxy, agent and lb as separate executables
  --uninstall        remove the executables from DIR; configuration and certificates stay
  --base-url URL     download from a mirror with the layout of the releases (env INSTALL_BASE_URL)
  --help             print this

An installed release is replaced atomically; running services use the new one after a restart.
USAGE
}

say() { printf '%s\n' "$*"; }
fail() { printf 'install.sh: %s\n' "$*" >&2; exit 1; }
misused() { printf 'install.sh: %s; see --help\n' "$*" >&2; exit 2; }
has() { command -v "$1" >/dev/null 2>&1; }

# Sets the options.
read_options() {
  version="" dir="" names="" uninstall="" base="${INSTALL_BASE_URL:-$REPOSITORY/releases}"
  while [ $# -gt 0 ]; do
    option=$1 && shift
    case $option in
      --*=*) set -- "${option#*=}" "$@" && option=${option%%=*} ;;
      --version | --dir | --only | --base-url) [ $# -gt 0 ] || misused "Cannot use $option without a value" ;;
    esac
    case $option in
      --version) version=${1#v} && shift ;;
      --dir) dir=$1 && shift ;;
      --base-url) base=${1%/} && shift ;;
      --only) names="$names $(full_name "$1")" || exit 2; shift ;;
      --all) names=$KNOWN ;;
      --uninstall) uninstall=yes ;;
      --help | -h) usage && exit 0 ;;
      *) misused "Cannot use $option: unknown option" ;;
    esac
  done
  case $version in *[!0-9A-Za-z.+-]*) misused "Cannot use --version $version: invalid version" ;; esac
  [ -n "$uninstall" ] && [ -z "$names" ] && names=$KNOWN
  names=${names:-reverse-http}
}

full_name() {
  case " $KNOWN " in
    *" reverse-http-$1 "*) echo "reverse-http-$1" ;;
    *" $1 "*) echo "$1" ;;
    *) misused "Cannot use --only $1: must be proxy, agent or lb" ;;
  esac
}

# Sets platform, as in the names of archives, and what an executable needs there.
find_platform() {
  system=$(uname -s) machine=$(uname -m)
  case $system in
    Linux) os=linux ;;
    Darwin) os=darwin ;;
    *) fail "Cannot install on $system: only Linux and macOS are supported" ;;
  esac
  case $machine in
    x86_64 | amd64) arch=amd64 ;;
    aarch64 | arm64) arch=arm64 ;;
    *) fail "Cannot install on $machine: only x86_64 and arm64 are supported" ;;
  esac
  # a shell under Rosetta reports x86_64 on an Apple processor
  if [ "$os$arch" = darwinamd64 ] && [ "$(sysctl -n hw.optional.arm64 2>/dev/null)" = 1 ]; then arch=arm64; fi
  platform="${os}_$arch"
  needs=""
  if [ "$os" = linux ]; then
    needs=" (it needs glibc 2.17 or later)"
    if is_musl; then platform="${platform}_musl" needs=" (it needs libstdc++: on Alpine, apk add libstdc++)"; fi
  fi
}

# Whether this system uses musl, as Alpine does; other systems may have musl beside glibc.
is_musl() {
  case $(ldd --version 2>&1 || true) in
    *musl*) return 0 ;;
    *GLIBC* | *GNU*) return 1 ;;
  esac
  for loader in /lib/ld-musl-*.so.1; do [ ! -e "$loader" ] || return 0; done
  return 1
}

# Sets dir if it was not given.
choose_dir() {
  if [ -z "$dir" ]; then
    if [ -w /usr/local/bin ]; then dir=/usr/local/bin; else dir=${HOME:?is not set, so use --dir}/.local/bin; fi
  fi
}

download() { # URL FILE
  case $1 in https://*) secure="--proto =https --tlsv1.2" ;; *) secure="" ;; esac
  # shellcheck disable=SC2086 # separate words
  if has curl; then
    curl -fsSL --retry 2 --connect-timeout 30 $secure -o "$2" "$1" || fail "Cannot download $1"
  elif has wget; then
    wget -q -O "$2" "$1" || fail "Cannot download $1"
  else
    fail "Cannot download: found neither curl nor wget"
  fi
}

sha256_of() { # FILE
  if has sha256sum; then sha256sum "$1"; elif has shasum; then shasum -a 256 "$1"; elif has openssl; then openssl dgst -sha256 -r "$1"; else
    fail "Cannot verify the download: found none of sha256sum, shasum and openssl"
  fi | cut -d ' ' -f 1
}

# Sets version if it was not given, from the names in the checksums.
fetch_checksums() {
  if [ -n "$version" ]; then from="$base/download/v$version"; else from="$base/latest/download"; fi
  download "$from/checksums.txt" "$work/checksums.txt"
  if has cosign; then
    download "$from/checksums.txt.sigstore.json" "$work/checksums.txt.sigstore.json"
    cosign verify-blob --bundle "$work/checksums.txt.sigstore.json" --certificate-identity-regexp "$SIGNER" \
      --certificate-oidc-issuer "$ISSUER" "$work/checksums.txt" >/dev/null 2>"$work/cosign.log" ||
      fail "Cannot trust $from/checksums.txt: its signature is not that of the release ($(tail -n 1 "$work/cosign.log"))"
    say "The signature of the checksums is good"
  fi
  found=$(sed -n 's/^[0-9a-f]\{64\}  *reverse-http_\(.*\)_linux_amd64\.tar\.gz$/\1/p' "$work/checksums.txt" | head -n 1)
  [ -n "$found" ] || fail "Cannot use $from/checksums.txt: it names no release"
  [ -z "$version" ] || [ "$version" = "$found" ] || fail "Cannot install $version: $from/checksums.txt belongs to $found"
  version=$found
}

# Downloads and verifies the executable into the working folder.
fetch_executable() { # NAME
  archive="$1_${version}_$platform.tar.gz"
  expected=$(sed -n "s/^\([0-9a-f]\{64\}\)  *$archive\$/\1/p" "$work/checksums.txt")
  [ -n "$expected" ] || fail "Cannot install $1: the release $version has no $archive"
  download "$base/download/v$version/$archive" "$work/$archive"
  actual=$(sha256_of "$work/$archive")
  [ "$actual" = "$expected" ] || fail "Cannot trust $archive: its SHA-256 is $actual instead of $expected"
  tar -xzf "$work/$archive" -C "$work" "$1" || fail "Cannot unpack $archive"
  chmod 755 "$work/$1"
  "$work/$1" --version >/dev/null 2>"$work/start.log" ||
    fail "Cannot run $1 on this machine: $(tail -n 1 "$work/start.log")$needs"
}

# Atomically: a start meanwhile runs either the old or the new one.
put_in_place() { # NAME
  fresh="$dir/.$1.new.$$"
  if ! { cp "$work/$1" "$fresh" && chmod 755 "$fresh" && mv -f "$fresh" "$dir/$1"; } 2>"$work/copy.log"; then
    rm -f "$fresh"
    fail "Cannot write $dir/$1: $(tail -n 1 "$work/copy.log")"
  fi
  say "Installed $dir/$1 $version"
}

install_all() {
  find_platform
  mkdir -p "$dir" 2>/dev/null || fail "Cannot create $dir: run with sudo, or choose another with --dir"
  [ -w "$dir" ] || fail "Cannot write to $dir: run with sudo, or choose another with --dir"
  # in the destination folder: the temporary folder may be small or mounted noexec
  work=$(mktemp -d "$dir/.reverse-http-install.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  trap 'exit 1' HUP INT TERM
  fetch_checksums
  for name in $names; do fetch_executable "$name"; done
  for name in $names; do put_in_place "$name"; done
  case ":$PATH:" in *":$dir:"*) ;; *) say "$dir is not in PATH: add it, or use the full path of the executables" ;; esac
}

uninstall_all() {
  removed=""
  for name in $names; do
    [ -e "$dir/$name" ] || continue
    rm -f "$dir/$name" 2>/dev/null || fail "Cannot remove $dir/$name: run with sudo"
    say "Removed $dir/$name" && removed=yes
  done
  [ -n "$removed" ] || say "There is nothing to remove in $dir"
}

main() {
  read_options "$@"
  choose_dir
  if [ -n "$uninstall" ]; then uninstall_all; else install_all; fi
}

main "$@"
