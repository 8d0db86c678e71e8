#!/bin/sh
# What confines a sandbox and what is in it, as its agent's first process, its own files and Podman tell; in the last line
# when the sidecar was started, when it was ready, and when the agent was started. Usage: confinement.sh NAME
# But for that line it is the same text before and after a reboot.
set -eu
export PODMAN_IGNORE_CGROUPSV1_WARNING=1 # no other words than those below
agent=openshell-agent-$1 proxy=openshell-proxy-$1
podman exec "$agent" sh -c '
    grep -E "^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp)" /proc/1/status
    cat /proc/1/uid_map /proc/1/gid_map /proc/net/route /etc/resolv.conf /sandbox/kept /tmp/kept /openshell-tls/ca.pem
    for file in /proc/sys/net/ipv6/conf/*/disable_ipv6 /proc/sys/net/ipv4/ip_forward; do echo "$file $(cat "$file")"; done'
podman container inspect --format '{{.Id}} {{.EffectiveCaps}} {{.HostConfig.ReadonlyRootfs}} {{.HostConfig.SecurityOpt}}
{{.HostConfig.PidsLimit}} {{.HostConfig.Memory}}{{range $name, $one := .NetworkSettings.Networks}} {{$name}}
{{if ne $name "openshell"}}{{$one.IPAddress}} {{$one.MacAddress}}{{end}}{{end}}' "$agent" "$proxy"
started() { podman container inspect --format '{{.State.StartedAt.UnixNano}}' "$1"; }
echo "started $(started "$proxy") $(podman exec "$agent" stat --format %.9Y /openshell-tls/.ready | tr -d .) $(started "$agent")"
