# SPDX-License-Identifier: Apache-2.0
# The agent's container.  Nobody can load a profile from inside a container, so that this one is put on every
# node by whoever runs the nodes, before securityContext.appArmor.profile names it:
#
#   install -m 0644 apparmor.profile /etc/apparmor.d/ciliumd-agent
#   apparmor_parser --replace --write-cache /etc/apparmor.d/ciliumd-agent
#
# What is not listed is refused: mount(2), ptrace(2) of others, other capabilities, writing elsewhere.  Files are
# those of the image and of the mounts in templates/cilium-agent/daemonset.yaml.

abi <abi/3.0>,

profile ciliumd-agent flags=(attach_disconnected,mediate_deleted) {
  # The same as securityContext.capabilities.ciliumAgent.
  capability net_admin,
  capability net_raw,
  capability bpf,
  capability perfmon,

  # API server, CLI, runtimes, other nodes' probes; devices, routes, addresses; ICMP of health probes; tcpdump.
  network inet,
  network inet6,
  network unix,
  network netlink raw,
  network netlink dgram,
  network packet,

  # The image is read, and its programs run under this profile.
  / r,
  /** r,
  /{,usr/}{bin,sbin}/** ix,
  /opt/ciliumd/** mix,
  /{,usr/}lib{,64}/** mix,
  deny /proc/{kcore,kmem,sysrq-trigger} rwklx,
  deny /sys/kernel/security/** rwklx,
  deny /sys/firmware/** rwklx,

  # State, sockets and locks.
  /tmp/{,**} rwk,
  /{,var/}run/cilium/{,**} rwkl,
  # Maps, programs and links that outlive the agent.
  /sys/fs/bpf/{,**} rwk,
  # The CNI configuration, and those of others that are set aside; the directory of executables is not here.
  /host/etc/cni/net.d/{,*} rw,
  # Forwarding and reverse path filters of the devices it makes.
  /host/proc/sys/net/** rw,
  owner /proc/[0-9]*/sys/net/** rw,
  owner /proc/[0-9]*/{,task/[0-9]*/}comm rw,
  /dev/{null,zero,full,tty} rw,
  /dev/{pts/,}ptmx rw,
  /dev/pts/* rw,
  /dev/shm/{,**} rwk,
  /dev/termination-log w,

  # The runtime ends it; its own processes are its own.
  signal (receive),
  signal (send) peer=ciliumd-agent,
  ptrace (read, readby) peer=ciliumd-agent,
}
