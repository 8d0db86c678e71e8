#!/usr/bin/env bash
# A host of its own: a privileged container with Podman, sshd and an address. Usage: up.sh NAME ADDRESS SUITE KEY.pub USER DISK
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
podman run --detach --name "$name" --hostname "$host" "${label[@]}" --privileged --init "${limits[@]}" \
    --network "$network:ip=$address" "${storage[@]}" --tmpfs /run --pull never "$image" \
    sh -c 'mkdir -p /run/sshd && /usr/sbin/sshd && exec sleep infinity' >/dev/null
podman exec -i "$name" sh -e -s "$user" "$(cat "$key")" <<'INSIDE'
umask 022
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
mount --make-rshared /
[ "$1" = root ] || useradd --create-home --shell /bin/bash "$1"
chmod 666 /dev/net/tun /dev/fuse 2>/dev/null || true
home=$(getent passwd "$1" | cut -d: -f6)
mkdir -p -m 700 "$home/.ssh"
echo "$2" >"$home/.ssh/authorized_keys"
[ "$1" = root ] || { mkdir -p "$home/.config/containers" && printf '[storage]\ndriver = "overlay"\n' >"$home/.config/containers/storage.conf"; }
chown -R "$1:" "$home"
install -d -m 700 -o "$1" "/run/user/$(id -u "$1")" # where there is a systemd, it does that
INSIDE
