// Package shell quotes words for a POSIX shell, so that a command in a message can be pasted
// whatever its paths and names contain.
package shell
