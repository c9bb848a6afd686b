// Package bonnie runs bonnie++ in a guest on disks of several kinds and says how much
// slower than a plain virtio-blk disk over a raw file each of them is: cowblk's
// stacks, and chains of the kernel's dm-snapshot that the guest makes over plain
// disks.
//
// Every disk starts as the same empty ext4 file system. In a stack, or chain, of
// depth n, each of the n-1 layers below the writable one holds a file of its own
// (layerMiB). Each run has fresh disks and a fresh guest; rounds are interleaved,
// ratios are taken within a round, and their median counts.
//
// dm-snapshot keeps chunks of 4 KiB, the block size of cowblk, in persistent
// stores; a chain is one snapshot on top of the other, written to at the top.
//
// The guest's processor is emulated, and is the limit of much of what bonnie++
// does: what the disks differ by is a smaller part of the time than it would be
// under KVM. Ratios within one run are what to read.
package bonnie
