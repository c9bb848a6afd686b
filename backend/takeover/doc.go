// Package takeover is the conversation in which a process that serves disks hands its
// listening sockets, and the disks, to a new process: both ends of it, and nothing of
// what either does in between.
//
// It is held on a connection to the control socket of the old process, which the command
// cow-takeover takes over (control.ConnHandler: same user or root). Each message is a
// length (32 bits, big-endian) and a JSON object; a message that carries a file
// descriptor carries exactly one.
//
//	new  cow-takeover {"version", "disks"}
//	old  refused {"error"}                                 and goes on serving
//	     socket {"disk", "path", "keep"} + fd              one a disk, listening
//	     control {"path", "keep"} + fd                     the control socket, listening
//	     nbd {"address"} + fd, export {"name"}             the NBD server's sockets and exports, if it runs
//	     ready                                             it still serves; promotions and commands wait
//	new  go                                                it has prepared all it can
//	old  refused {"error"}                                 and goes on serving
//	     connection {"disk"} + fd                          accepted at the last moment, not one byte read
//	     left                                              drained, sessions closed, disks left, locks free
//	new  serving                                           it has the locks and accepts: the old one ends
//	     failed {"error"}                                  the old one opens the disks again
//
// Whoever holds the locks of the disks may accept, nobody else. Both processes keep the
// listening sockets open until it is over, so that no connection is refused, and none is
// accepted only to be closed. Whenever one of the two dies, its locks are free and the
// other one sees the end of the connection: the old one opens the disks again and goes
// on; the new one opens them as after a crash. What a guest has not flushed passes in
// memory that outlives both (cow.Options.SharedDir).
package takeover

// Version is the version of the conversation. Both sides must have the same. In
// version 1 the old process sent what was not flushed ("state").
const Version = 2

// Command is the control command that begins it.
const Command = "cow-takeover"

// Kinds of messages.
const (
	Refused    = "refused"
	Socket     = "socket"
	Control    = "control"
	NBD        = "nbd"
	Export     = "export"
	Ready      = "ready"
	Go         = "go"
	Connection = "connection"
	Detached   = "left"
	Serving    = "serving"
	Failed     = "failed"
)

// Args are the arguments of Command.
type Args struct {
	Version int      `json:"version"`
	Disks   []string `json:"disks"` // all that the old process serves, in any order
}

// Message is one message. FD belongs to whoever has the message; sending it leaves it
// with the sender.
type Message struct {
	Kind     string `json:"kind"`
	Disk     string `json:"disk,omitempty"`
	Path     string `json:"path,omitempty"`
	KeepFile bool   `json:"keep,omitempty"` // the socket's file is not ours to remove
	Address  string `json:"address,omitempty"`
	Name     string `json:"name,omitempty"`
	Error    string `json:"error,omitempty"`

	FD int `json:"-"` // 0: none
}

// carriesFD says which kinds come with a file descriptor.
func carriesFD(kind string) bool {
	switch kind {
	case Socket, Control, NBD, Connection:
		return true
	}
	return false
}
