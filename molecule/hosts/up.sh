#!/usr/bin/env bash
# A host of its own: a privileged container with systemd, Podman, sshd and an address. Usage: up.sh NAME ADDRESS SUITE KEY.pub USER DISK
# USER other than root is made. DISK is the size of its disk, as 64m, or empty; such a host reads the images of this one.
set -euo pipefail
cd "$(dirname "$0")"
host=$1 address=$2 suite=$3 key=$4 user=$5 disk=$6
name=openshell-testhost-$host network=openshell-testhosts
image=$(./image.sh "$suite")
label=(--label openshell.testhost=true)
podman network exists $network || podman network create "${label[@]}" --subnet 10.98.77.0/24 --disable-dns $network >/dev/null
# Overlay on overlay does not work: what holds layers is a volume, or a tmpfs for a disk that can be full.
where=$([[ $user == root ]] && echo /var/lib/containers || echo /home)
if [[ $disk ]]; then storage=(--mount "type=tmpfs,destination=$where,tmpfs-size=$disk,tmpfs-mode=0755"
    --volume "$(podman info --format '{{.Store.GraphRoot}}'):/srv/images:ro")
else
    podman volume create "${label[@]}" "$name" >/dev/null
    storage=(--volume "$name:$where")
fi
# As the role does: crun refuses cgroups v1, and a machine may not raise its own limits.
limits=(--ulimit nofile=16384:16384 --ulimit nproc=8192:8192)
[[ $(podman info --format '{{.Host.CgroupsVersion}}') == v1 ]] && limits+=(--runtime runc)
read -r -d '' boot <<'INSIDE' || true
# What a machine has at each boot: systemd leaves these to whoever made the container that it runs in.
mount --make-rshared /
chmod 666 /dev/net/tun /dev/fuse 2>/dev/null || true
[ -e /etc/testhost ] || {
    printf '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\nruntime = "runc"\n' >/etc/containers/containers.conf
    [ ! -d /srv/images ] || cat >/etc/containers/storage.conf <<STORAGE
[storage]
driver = "overlay"
runroot = "/run/containers/storage"
graphroot = "/var/lib/containers/storage"
[storage.options]
additionalimagestores = ["/srv/images"]
STORAGE
    rm -f /etc/cni/net.d/87-podman-bridge.conflist # Debian's, for the other network backend
    [ "$1" = root ] || useradd --create-home --shell /bin/bash "$1"
    home=$(getent passwd "$1" | cut -d: -f6)
    mkdir -p -m 700 "$home/.ssh"
    echo "$2" >"$home/.ssh/authorized_keys"
    # As an administrator does with loginctl enable-linger; without polkit a user may not.
    [ "$1" = root ] || { mkdir -p /var/lib/systemd/linger && touch "/var/lib/systemd/linger/$1"; }
    [ "$1" = root ] || { mkdir -p "$home/.config/containers" && printf '[storage]\ndriver = "overlay"\n' >"$home/.config/containers/storage.conf"; }
    chown -R "$1:" "$home"
    touch /etc/testhost
}
exec /sbin/init
INSIDE
# A machine keeps its hardware address when it reboots; with another, its neighbours talk to the old one for half a minute.
hardware=$(printf '02:00:%02x:%02x:%02x:%02x' ${address//./ })
# A systemd of its own in cgroups of its own. Podman's --systemd would mount those of this machine where cgroups are v1.
systemd=(--systemd false --cgroupns private --env container=podman --stop-signal RTMIN+3 --tmpfs /run)
podman run --detach --name "$name" --hostname "$host" "${label[@]}" --privileged "${systemd[@]}" "${limits[@]}" \
    --network "$network:ip=$address,mac=$hardware" "${storage[@]}" --pull never "$image" \
    sh -e -c "umask 022; $boot" sh "$user" "$(cat "$key")" >/dev/null
