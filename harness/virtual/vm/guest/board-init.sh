#!/bin/bash
# The virtual board's first process: mounts, modules, network, sshd, and a word on the console.
# What differs between boards comes through QEMU's firmware configuration.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
for folder in /dev/shm /run /tmp; do mount -t tmpfs tmpfs "$folder"; done
mkdir -p /run/sshd
chmod 1777 /tmp /dev/shm

for module in virtio_net virtio_rng qemu_fw_cfg cpufreq_ondemand cpufreq_conservative \
  cpufreq_userspace cpufreq_powersave; do
  modprobe "$module" 2>/dev/null
done
# Its parameters stand on the kernel's command line as boardsim.NAME=VALUE.
modprobe boardsim || echo "BOARD-FAILED: the module boardsim does not load"

config=/sys/firmware/qemu_fw_cfg/by_name/opt/fleetcut
hostname "$(cat $config/hostname/raw)"
echo "127.0.0.1 localhost $(hostname)" >/etc/hosts
umask 077
cat $config/host_key/raw >/etc/ssh/ssh_host_ed25519_key
mkdir -p /home/fleetcut/.ssh
cat $config/authorized_keys/raw >/home/fleetcut/.ssh/authorized_keys
chown -R fleetcut:fleetcut /home/fleetcut/.ssh
umask 022

mkdir -p /usr/local/sbin /usr/local/bin
cat $config/setup/raw | bash || echo "BOARD-FAILED: the setup script ended with $?"

ip link set lo up
for interface in /sys/class/net/e*; do
  ip link set "${interface##*/}" up
  ip addr add 10.0.2.15/24 dev "${interface##*/}"
done
/usr/sbin/sshd || echo "BOARD-FAILED: sshd does not start"
# It listens only some time after it went to the background.
until (: </dev/tcp/127.0.0.1/22) 2>/dev/null; do sleep 0.05; done
echo "BOARD-READY"
# Bash collects orphans while it waits.
while :; do
  sleep 3600 &
  wait $!
done
