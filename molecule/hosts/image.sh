#!/usr/bin/env bash
# The image of a test host, Debian SUITE with systemd, Podman and sshd, bootstrapped once from this machine's own package mirror.
# Usage: image.sh SUITE     prints the image's name
set -euo pipefail
suite=$1
name=localhost/openshell-testhost:$suite-$(sha256sum "$0" | cut -c1-12)
exec 3>&1 >&2
if ! podman image exists "$name"; then
    # shellcheck disable=SC1091
    . /etc/os-release
    sources=$(apt-get indextargets --format "deb \$(REPO_URI) \$(RELEASE) \$(COMPONENT)" "Created-By: Packages" |
        grep "^deb http.* $VERSION_CODENAME main\$" | sort -u | sed "s/ $VERSION_CODENAME main\$/ $suite main/")
    [[ $ID == debian && $sources ]] || { echo "test hosts need a Debian machine with a package index; run apt-get update"; exit 1; }
    packages=podman,netavark,aardvark-dns,nftables,iptables,runc,uidmap,slirp4netns,passt,fuse-overlayfs,catatonit
    packages+=,systemd-sysv,libpam-systemd,dbus-user-session
    echo "bootstrapping a test host, $suite (a minute or two)"
    mmdebstrap --quiet --variant=essential --include="$packages,openssh-server,python3,iproute2,procps,ca-certificates" \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' "$suite" - - <<<"$sources" |
        podman import --quiet --change "LABEL openshell.testhost=true" - "$name"
fi
echo "$name" >&3
