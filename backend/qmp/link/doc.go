// Package link is one connection to a QMP server: QEMU's monitor, or cowblk's control socket. It is
// the only client of the protocol (qmp-spec) here.
//
// go-qemu's SocketMonitor is not used: it returns replies from the buffer into which it reads the
// next message, stops reading replies while an event waits for a receiver, ends the connection at a
// line of 64 KiB, drops error classes, and knows no deadlines.
package link
