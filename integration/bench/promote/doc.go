// Package promote measures what a promotion costs the guest: the longest time that any
// of its requests waits.
//
// An in-process front-end drives a real "cowblk serve" process with random 4 KiB
// reads and writes, while the disk is promoted again and again, from depth 1 on.
// A window reaches from the command to promote until the former head is sealed;
// after it comes a window as long without a promotion, under the same load. What
// a window says is the longest latency of the requests that were under way in
// it; its part from command to reply is also shown by itself. The difference
// between the distributions of the two kinds of windows is what the promotion
// adds. Where 1 GiB is dirty before each promotion, the space of the layers below
// is given back between windows.
//
// Beside it qemu-storage-daemon takes snapshots of a qcow2 image
// (blockdev-snapshot-sync) under the same load, with its write cache on.
package promote
