// Package scale measures how the costs of commands that are about one disk grow with the store around it, for one build of
// cowblk or for two, "before" and "after".
//
// On an XFS in a sparse file, so that disks of 64 TiB can be had, it makes stores that differ in one thing: how many
// disks there are, how many tags the disk has that is cloned, how large the disks are. In each it has every build make a
// clone, promote it twice, look at it, check it, complete a name, roll it back and remove it: once under strace, which
// counts the system calls that are about files, and some times without, for the time. It prints Markdown tables:
// calls, milliseconds, and for both the exponent e with which they grow, cost ~ size^e, between the first and the last
// size. 0 is constant, 1 is proportional.
//
// Numbers of calls are the same on every machine, but for a few. Times are not, and say little while others use it.
//
// Stores are made by the build in question, and what it finds out once after a start of the system it has found out
// before it is measured.
package scale
