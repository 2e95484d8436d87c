#!/bin/busybox ash
# Loads what the disk needs, mounts it and hands over. Module names are numbered in load order.
B=/bin/busybox
$B mount -t proc proc /proc
$B mount -t devtmpfs dev /dev
for module in /modules/*; do $B insmod "$module"; done
tries=0
while [ ! -b /dev/vda ] && [ "$tries" -lt 100 ]; do
  $B sleep 0.1
  tries=$((tries + 1))
done
$B mount -o rw,noatime /dev/vda /new || { echo "BOARD-FAILED: no disk"; exec $B poweroff -f; }
$B mount --move /dev /new/dev
$B umount /proc
exec $B switch_root /new /sbin/board-init
