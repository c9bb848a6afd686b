// Package cowtest tests package cow and everything built on it. A Rig makes and keeps a stack in a
// directory. A Model knows for every sector of a disk which content is legal while operations
// overlap in time. Script and Run make and perform random operations on many channels at once.
// Intercept stands between the stack and its files: it blocks calls, makes them fail, or records
// them. KillFS kills its user at any one of the changes made to files.
//
// Every written sector is stamped with the number of its write and its own position, so that a
// stale, torn or misplaced sector is recognized at once.
package cowtest
