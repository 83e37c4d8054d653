#!/bin/sh
# Creates the files that the compose files mount: certs/ with an authority and a certificate for the proxies, jwt/ with keys and tokens for the
# agents 4711 and 4712 and their clients, .env with the user who may read them, and private/ with the two keys that no container needs.
# Existing files are kept.
# Arguments: additional names and addresses at which agents and clients reach the proxies. Needs openssl 3; for jwt/ also reverse-http, or docker.
set -eu
umask 077
cd "$(dirname "$0")"
mkdir -p certs jwt private

names="DNS:localhost,IP:127.0.0.1,IP:::1"
for name in proxy proxy-1 proxy-2 proxy-lb lb-1 lb-2 http-proxy "$@"; do
  case $name in
    *:* | *[0-9].[0-9]*.[0-9]*.[0-9]*) names="$names,IP:$name" ;;
    *) names="$names,DNS:$name" ;;
  esac
done

if [ ! -e certs/ca.pem ]; then
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj "/CN=reverse-http" \
    -addext keyUsage=critical,keyCertSign,cRLSign -keyout private/ca-key.pem -out certs/ca.pem
fi
if [ ! -e certs/proxy.pem ]; then
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 825 -subj "/CN=proxy" \
    -CA certs/ca.pem -CAkey private/ca-key.pem -addext basicConstraints=critical,CA:false \
    -addext "subjectAltName=$names" -addext extendedKeyUsage=serverAuth -keyout certs/proxy-key.pem -out certs/proxy.pem
fi

reverse_http() {
  if command -v reverse-http >/dev/null; then
    reverse-http "$@"
  else
    docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/work" --workdir /work \
      "${REVERSE_HTTP_IMAGE:-ghcr.io/reverse-http/reverse-http:latest}" "$@"
  fi
}

if [ ! -e jwt/auth-key-public.pem ]; then
  reverse_http auth key private --out private/auth-key-private.pem
  reverse_http auth key public --in private/auth-key-private.pem --out jwt/auth-key-public.pem
  for id in 4711 4712; do
    for role in agent client; do
      reverse_http auth jwt token --agent-id "$id" --role "$role" --duration 8760h \
        --in private/auth-key-private.pem --out "jwt/auth-$role-jwt-$id.b64"
    done
  done
fi

# containers run as the owner of the files or, if that is root, as the image's user
if [ "$(id -u)" = 0 ]; then
  chown -R 65532:65532 certs jwt
  echo "REVERSE_HTTP_USER=65532:65532" >.env
else
  echo "REVERSE_HTTP_USER=$(id -u):$(id -g)" >.env
fi
