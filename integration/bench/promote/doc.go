// Package promote measures the cost of a promotion to the guest: the longest time that any of its
// requests waits.
//
// An in-process front-end drives a real "cowblk serve" process with random 4 KiB reads and writes,
// while the disk is promoted repeatedly, from depth 1 on. A window reaches from the promote command
// until the former head is sealed. After it comes a window of the same length without a promotion,
// under the same load. The figure of a window is the longest latency of the requests in flight in
// it; the part from command to reply is also shown separately. The difference between the
// distributions of the two kinds of windows is the cost of the promotion. In scenarios with 1 GiB
// dirty before each promotion, the space of the layers below is freed between windows.
//
// For comparison qemu-storage-daemon takes snapshots of a qcow2 image (blockdev-snapshot-sync)
// under the same load, with its write cache on.
package promote
