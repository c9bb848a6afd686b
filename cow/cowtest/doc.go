// Package cowtest tests package cow and everything built on it. A Rig makes and keeps a stack in a
// directory. A Model knows for every sector of a disk which content is legal while operations
// overlap in time. Script and Run make and perform random operations on many channels at once.
// Files that fail, block or lose power are in faultfs.
//
// Every written sector is stamped with the number of its write and its own position, so that a
// stale, torn or misplaced sector is recognized at once.
package cowtest
