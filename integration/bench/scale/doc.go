// Package scale measures how the cost of commands on one disk grows with the size of the store, for
// one or two builds of cowblk, "before" and "after".
//
// On an XFS in a sparse file, which allows disks of 64 TiB, it makes stores that differ in one
// thing: the number of disks, the number of tags of the cloned disk, or the size of the disks. In
// each store every build makes a clone, promotes it twice, shows it, checks it, completes its name,
// rolls it back and removes it: once under strace, which counts the system calls on files, and a
// few times without, for the time. It prints Markdown tables: calls, milliseconds, and for both the
// exponent e of their growth, cost ~ size^e, between the first and the last size. 0 is constant, 1
// is proportional.
//
// The numbers of calls are nearly the same on every machine. Times are not, and say little on a
// busy machine.
//
// Each build makes its own stores. What it determines once after a start of the system, or once
// after the creation of a disk, it has determined before the measurement.
package scale
