// Package takeover is the protocol by which a process that serves disks hands its listening sockets
// and the disks to a new process. It has both ends of the conversation, but not the work of either
// process in between.
//
// The conversation uses a connection to the control socket of the old process, after the command
// cow-takeover (control.ConnHandler: same user or root). Each message is a length (32 bits,
// big-endian) and a JSON object; a message that carries a file descriptor carries exactly one.
//
//	new  cow-takeover {"version", "disks"}
//	old  refused {"error"}                       continues to serve
//	     socket {"disk", "path", "keep"} + fd    one for each disk, listening
//	     control {"path", "keep"} + fd           the control socket, listening
//	     nbd {"address"} + fd, export {"name"}   sockets and exports of the NBD server, if it runs
//	     ready                                   still serves; promotions and commands wait
//	new  go                                      has prepared all that is possible
//	old  refused {"error"}                       continues to serve
//	     connection {"disk"} + fd                accepted at the last moment, nothing read
//	     left                                    drained; sessions closed, disks detached, unlocked
//	new  serving                                 holds the locks and accepts: the old process ends
//	     failed {"error"}                        the old process opens the disks again
//
// Only the process that holds the locks of the disks may accept. Both processes keep the listening
// sockets open until the end, so that no connection is refused, or accepted only to be closed. If
// either process dies, its locks are free and the other one sees the end of the connection: the old
// process opens the disks again and continues; the new one opens them as after a crash. Unflushed
// data of a guest passes in memory that outlives both (cow.Options.SharedDir).
package takeover

// Version is the version of the protocol, which must be equal on both sides. In version 1 the old
// process sent unflushed state ("state").
const Version = 2

// Command is the control command that begins a takeover.
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

// Args holds the arguments of Command.
type Args struct {
	Version int      `json:"version"`
	Disks   []string `json:"disks"` // all disks that the old process serves, in any order
}

// Message is one message. The receiver owns FD; the sender of a message keeps its own.
type Message struct {
	Kind     string `json:"kind"`
	Disk     string `json:"disk,omitempty"`
	Path     string `json:"path,omitempty"`
	KeepFile bool   `json:"keep,omitempty"` // the receiver must not remove the socket's file
	Address  string `json:"address,omitempty"`
	Name     string `json:"name,omitempty"`
	Error    string `json:"error,omitempty"`

	FD int `json:"-"` // 0: none
}

// carriesFD reports whether messages of a kind carry a file descriptor.
func carriesFD(kind string) bool {
	switch kind {
	case Socket, Control, NBD, Connection:
		return true
	}
	return false
}
