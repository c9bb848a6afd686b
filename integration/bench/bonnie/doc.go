// Package bonnie runs bonnie++ in a guest on disks of several kinds. It reports how much slower
// each is than a plain virtio-blk disk over a raw file. The kinds are cowblk's stacks, and chains
// of the kernel's dm-snapshot that the guest makes over plain disks.
//
// Every disk starts as the same empty ext4 file system. In a stack or chain of depth n, each of the
// n-1 layers below the writable one holds a file of its own (layerMiB). Each run has fresh disks
// and a fresh guest. Rounds are interleaved, ratios are taken within a round, and the result is
// their median.
//
// dm-snapshot keeps chunks of 4 KiB, the block size of cowblk, in persistent stores; a chain is a
// series of snapshots, each on top of the last, and the top is written to.
//
// The guest's processor is emulated and limits much of bonnie++'s work, so the difference between
// disks is a smaller part of the time than under KVM. Compare ratios within one run.
package bonnie
