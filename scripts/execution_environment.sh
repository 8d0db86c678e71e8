#!/usr/bin/env bash
# Build the execution environment that meta/execution-environment.yml defines, with ansible-builder; print its name.
# Usage: execution_environment.sh
#
# Its base is a Debian as the collection's own images have it: pulled, or bootstrapped from this machine's package mirror.
# It is built with the package index that this machine's pip has, and with its certificates; neither stays in the image.
set -euo pipefail
cd "$(dirname "$0")/.."
exec 3>&1 >&2
export PATH=$PWD/.venv/bin:$PATH
work=.work/execution-environment
rm -rf "$work"
mkdir -p "$work/collections"
tarball=$(scripts/build.sh "$work")
name=localhost/openshell-ee:$(tar -xOf "$tarball" MANIFEST.json FILES.json | sha256sum | cut -c1-16)

base_image() { # made where there is none; its name
    # shellcheck disable=SC2016  # templates of Ansible's
    ANSIBLE_CALLBACK_RESULT_FORMAT=json ansible localhost -e @roles/image/defaults/main.yml \
        -e '{"packages": ["apt", "ca-certificates", "python3", "python3-pip"]}' -m openshell.sandbox.base_image -a '{
            "name": "{{ [packages] | openshell.sandbox.image_name(\"base\") }}", "packages": "{{ packages }}",
            "reference": "{{ openshell_base_image }}", "source": "{{ openshell_base_image_source }}"}' |
        sed -n 's/.*"image": "\([^"]*\)".*/\1/p'
}

pip_configuration() { # what counts in another place too: no files of this machine
    echo '[global]'
    echo 'cert = /etc/ssl/certs/ca-certificates.crt'
    pip config list | sed -n "s/^[^.]*\.\(\(extra-\)\?index-url\)='\(https\?:[^']*\)'\$/\1 = \3/p"
}

build() {
    local base certificates
    cp -r meta meta/execution-environment.yml "$work"
    mv "$tarball" "$work/collections/openshell-sandbox.tar.gz"
    cp -r "$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/ansible_collections/containers" "$work/collections"
    pip_configuration >"$work/pip.conf"
    base=$(base_image)
    [[ $base ]] || { echo "there is no base image"; exit 1; }
    certificates=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}
    local arguments=(--pull=never --force-rm --ulimit nofile=16384:16384 --ulimit nproc=8192:8192
        --volume "$PWD/$work/pip.conf:/etc/pip.conf:ro")
    if [[ -e $certificates ]]; then
        arguments+=(--security-opt label=disable --volume "$(realpath "$certificates"):/etc/ssl/certs/ca-certificates.crt:ro")
    fi
    [[ $(podman info --format '{{.Host.CgroupsVersion}}') == v1 ]] && arguments+=(--runtime runc)
    ansible-builder build --file "$work/execution-environment.yml" --context "$work/context" --container-runtime podman \
        --verbosity 2 --build-arg "EE_BASE_IMAGE=$base" --tag "$name" --extra-build-cli-args "${arguments[*]@Q}"
}

podman image exists "$name" || build
podman tag "$name" localhost/openshell-ee:latest
echo "$name" >&3
