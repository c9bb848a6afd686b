// Package cowtest tests package cow and whatever is built on it: a Rig makes and
// keeps a stack in a directory, a Model says for every sector of a disk which
// content is legal while operations overlap in time, Script and Run make and
// carry out random operations on many channels at once, Intercept stands between
// the stack and its files, to hold a call back, to make it fail, or to watch, and
// Mortal kills whoever uses it at any one of the changes made to files.
//
// Every written sector is stamped with the number of its write and its own
// place, so that a stale, torn or misplaced sector is known at sight.
package cowtest
