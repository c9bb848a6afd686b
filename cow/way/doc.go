// Package way resolves the path of a directory one element at a time, as the kernel does, and
// reports whether a user other than root and this one could redirect it. A path leads to the same
// file twice only if nobody else can change the directories that contain its elements and the
// symbolic links on it.
package way
